"""AdamW over parameters that the processes of a crew divide among themselves. May import `runtime.crew`.

Each parameter has an owner, which alone keeps its moments and its best value and moves it (ZeRO, arXiv:1910.02054, by
whole parameters); the others are sent its value. A single process owns all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from sned.runtime.crew import Crew
    from sned.training.schedule import Schedule

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("weight", "best", *_MOMENTS)


class Optimiser:
    """Moves parameters, and remembers the best values that they had.

    What is called here sends and receives, so that all processes must call it, in the same order.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], schedule: Schedule, crew: Crew) -> None:
        """Begin with the values that the parameters have, as the best so far.

        Args:
            params: By name; those that this process owns are in float32. What is on the meta device here is held by
                its owner alone, who gets its gradient and gives its value wherever it is used.
            schedule: How they move.
            crew: The processes.
        """
        self._params, self._crew, self._clip = params, crew, schedule.clip
        apart = torch.tensor([float(param.is_meta) for param in params.values()])
        crew.add_up([apart])
        self._everywhere = {name for name, elsewhere in zip(params, apart.tolist(), strict=True) if not elsewhere}
        self._device = next((param.device for param in params.values() if not param.is_meta), torch.device("cpu"))
        self._owner = crew.owners({name: param.numel() for name, param in params.items()})
        self._own = {name: param for name, param in params.items() if self._owner[name] == crew.rank}
        self._adamw = torch.optim.AdamW(
            [{"params": list(self._own.values())}],  # a group, since a list may not be empty
            lr=schedule.lr,
            betas=(0.9, 0.95),
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        self.keep_best()

    def forget_gradients(self) -> None:
        """Drop the gradients."""
        for param in self._params.values():
            param.grad = None

    def step(self, rate: float) -> bool:
        """Take a step along the sum of all processes' gradients; return whether they are finite, else none is taken."""
        if self._crew.size > 1:
            self._sum_gradients()
        gradients = [param.grad for param in self._own.values() if param.grad is not None]
        norm = self._crew.norm(torch.nn.utils.get_total_norm(gradients))
        if not bool(torch.isfinite(norm)):
            return False
        torch.nn.utils.clip_grads_with_norm_(self._own.values(), self._clip, norm)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._send_values()
        return True

    def keep_best(self) -> None:
        """Remember the values as they are."""
        self._best = {name: param.detach().clone() for name, param in self._own.items()}

    @torch.no_grad()
    def adopt_best(self) -> None:
        """Give the parameters the values that were remembered."""
        for name, param in self._own.items():
            param.copy_(self._best[name])
        self._send_values()

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that going on needs, where this process leads; nothing elsewhere."""
        made: dict[str, torch.Tensor] = {}
        for name, param in self._params.items():
            mine = self._parts(name) if name in self._own else {}
            for part in _PARTS:
                tensor = mine[part] if mine else self._room(param)
                self._crew.send(tensor, self._owner[name])
                if self._crew.leads:
                    made[f"{part}.{name}"] = tensor if mine else tensor.cpu()
        return made

    @torch.no_grad()
    def load(self, kept: Mapping[str, torch.Tensor], step: int) -> None:
        """Take up what `state` returned after so many steps; only what the leading process gives counts."""
        for name, param in self._params.items():
            found: dict[str, torch.Tensor] = {}
            for part in _PARTS:
                found[part] = self._room(param)
                if self._crew.leads:
                    found[part].copy_(kept[f"{part}.{name}"])
                self._crew.send(found[part])
            if not param.is_meta:
                param.copy_(found["weight"])
            if name in self._own:
                self._best[name] = found["best"]
                done = torch.tensor(float(step), device=param.device)
                self._adamw.state[param] = {"step": done, **{part: found[part] for part in _MOMENTS}}

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty(like.shape, dtype=torch.float32, device=self._device)

    def _parts(self, name: str) -> dict[str, torch.Tensor]:
        param = self._own[name]
        moments = self._adamw.state.get(param, {})  # nothing before the first step, and where there is no gradient
        values = [moments[part] if part in moments else torch.zeros_like(param) for part in _MOMENTS]
        return dict(zip(_PARTS, (param.detach(), self._best[name], *values), strict=True))

    def _spread(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that every process has."""
        return ((name, param) for name, param in self._params.items() if name in self._everywhere)

    def _sum_gradients(self) -> None:
        """Give every parameter of this process its gradient from all; zeros where a process had none."""
        for name, param in self._spread():
            own = torch.zeros_like(param, dtype=torch.float32) if param.grad is None else param.grad.float()
            self._crew.add_up([own], self._owner[name])
            param.grad = own if name in self._own else None

    @torch.no_grad()
    def _send_values(self) -> None:
        if self._crew.size == 1:
            return
        for name, param in self._spread():
            value = param.detach().float()
            self._crew.send(value, self._owner[name])
            if name not in self._own:
                param.copy_(value)

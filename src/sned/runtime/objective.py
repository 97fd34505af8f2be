"""What a candidate is judged by, token by token, from its final residual stream: few logits exist at a time.

May import `sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from sned.runtime.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.view import View

ObjectiveName = Literal["perplexity", "kl"]
_LOGITS_HELD = {"cpu": 2**22, "cuda": 2**27}
"""Logits that exist at once: on a CPU so few that they stay in its cache."""
_PROBE_TOKENS = 8
_LIKELY = 1 / 6
"""Share of the vocabulary whose logits say what a token loses at least. On SmolLM2-135M that is 0.03 nats too little,
with a third of it 0.12."""
_ROUNDING = 1e-3
"""What sums of logits in another order may differ by, in nats; on average they differ by far less."""


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return `-log p` of each next token, `[batch, tokens - 1]` in float32, from logits `[batch, tokens, vocab]`."""
    flat = logits[:, :-1].float().flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)


def window_nll(sweep: Sweep, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return `-log p` of each next token of a batch, `[batch, tokens - 1]` in float32."""
    pairs = zip(ids.split(1), hidden.split(1), strict=True)
    return torch.cat([token_nll(sweep.logits(window, state), window) for window, state in pairs])


class _Likely(NamedTuple):
    """Part of the vocabulary, as ascending rows of the head, and the windows that it was chosen for."""

    ids: torch.Tensor
    rows: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


class Perplexity:
    """The negative log-likelihood of the next token, in nats.

    Where the head is a plain matrix, its product is formed a slice of the vocabulary at a time and summed up on the
    fly; where the model does more with its logits (a cap, a scale), window by window from the model itself.
    """

    name: ObjectiveName = "perplexity"

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._plain: bool | None = None
        self._likely: _Likely | None = None

    @torch.no_grad()
    def per_token(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the loss of each next token, `[batch, tokens - 1]` in float32."""
        if not self._is_plain(ids, hidden):
            return window_nll(self._sweep, ids, hidden)
        states, head = self._states(ids, hidden)
        return sliced_nll(states, head.weight, head.bias, ids[:, 1:].flatten()).view(len(ids), -1)

    @torch.no_grad()
    def least(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return what each next token loses at least, `[batch, tokens - 1]` in float32, at a fraction of the cost.

        A sum over part of the vocabulary is less than that over all of it, whichever part it is. Taken are the targets
        and what the first candidate that meets these windows finds likely. Where the head is no plain matrix, zero.
        """
        if not self._is_plain(ids, hidden):
            return torch.zeros_like(ids[:, 1:], dtype=torch.float32)
        (states, head), targets = self._states(ids, hidden), ids[:, 1:].flatten()
        if self._likely is None or self._likely.ids is not ids:  # candidates come one after another with one batch
            often = mean_probability(states, head.weight, head.bias).topk(int(_LIKELY * len(head.weight))).indices
            rows = torch.cat([often, targets]).unique()
            self._likely = _Likely(ids, rows, head.weight[rows], None if head.bias is None else head.bias[rows])
        part = self._likely
        nll = sliced_nll(states, part.weight, part.bias, torch.searchsorted(part.rows, targets))
        return nll.view(len(ids), -1) - _ROUNDING

    def _is_plain(self, ids: torch.Tensor, hidden: torch.Tensor) -> bool:
        if self._plain is None:
            self._plain = head_is_plain(self._sweep, ids, hidden)
        return self._plain

    def _states(self, ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return what the head receives where a next token is known, `[rows, hidden]`, and the head."""
        states = self._sweep.before_head(ids, hidden)[:, :-1].flatten(0, 1)
        return states, self._sweep.view.model.get_output_embeddings()


class Divergence:
    """`KL(reference ‖ candidate)` of the next-token distributions, in nats."""

    name: ObjectiveName = "kl"
    _ROWS = 128

    def __init__(self, sweep: Sweep, reference: View) -> None:
        self._sweep, self._reference = sweep, Sweep(reference, sweep.cost)
        self._of: torch.Tensor | None = None
        self._target = torch.empty(0)

    @torch.no_grad()
    def per_token(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the divergence at each next token, `[batch, tokens - 1]` in float32."""
        if self._of is not ids:  # candidates come one after another with the same batch
            _, self._target = next(iter(self._reference.final([ids])))
            self._of = ids
        windows = zip(ids.split(1), hidden.split(1), self._target.split(1), strict=True)
        return torch.cat([torch.cat(list(self._window(*window)))[None] for window in windows])

    def _window(self, ids: torch.Tensor, hidden: torch.Tensor, target: torch.Tensor) -> Iterator[torch.Tensor]:
        mine, theirs = self._sweep.logits(ids, hidden)[0, :-1], self._reference.logits(ids, target)[0, :-1]
        for a, b in zip(mine.split(self._ROWS), theirs.split(self._ROWS), strict=True):
            p, q = b.float().log_softmax(-1), a.float().log_softmax(-1)
            yield (p.exp() * (p - q)).sum(-1).clamp_min(0)


Objective = Perplexity | Divergence


def objective_of(name: ObjectiveName, sweep: Sweep, reference: View) -> Objective:
    """Return an objective by name."""
    return Perplexity(sweep) if name == "perplexity" else Divergence(sweep, reference)


def sliced_nll(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Return `-log softmax(states Wᵀ + b)[target]`, `[rows]` in float32, without ever holding all logits.

    Args:
        states: `[rows, hidden]`
        weight: `[vocab, hidden]`
        bias: `[vocab]`, or None.
        targets: `[rows]`
    """
    total = states.new_full((len(states),), -torch.inf, dtype=torch.float32)
    chosen = torch.zeros_like(total)
    for start, logits in _slices(states, weight, bias):
        total = torch.logaddexp(total, logits.logsumexp(-1))
        inside = (targets >= start) & (targets < start + logits.shape[1])
        index = (targets - start).clamp(0, logits.shape[1] - 1)
        chosen += torch.where(inside, logits.gather(1, index[:, None])[:, 0], 0.0)
    return total - chosen


def mean_probability(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of `softmax(states Wᵀ + b)` over the rows, `[vocab]` in float32, forming its logits twice."""
    total = states.new_full((len(states), 1), -torch.inf, dtype=torch.float32)
    for _, logits in _slices(states, weight, bias):
        total = torch.logaddexp(total, logits.logsumexp(-1, keepdim=True))
    return torch.cat([(logits - total).exp().mean(0) for _, logits in _slices(states, weight, bias)])


def _slices(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield `(first entry, logits)` for one slice of the vocabulary after the other, `[rows, slice]` in float32."""
    width = max(256, _LOGITS_HELD.get(states.device.type, 2**24) // max(1, len(states)))
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        yield start, torch.nn.functional.linear(states, weight[part], None if bias is None else bias[part]).float()


def head_is_plain(sweep: Sweep, ids: torch.Tensor, hidden: torch.Tensor) -> bool:
    """Tell whether a model's logits are just its head's matrix product, by comparing the two on a few tokens."""
    head: Any = sweep.view.model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        return False
    ids, hidden = ids[:1, :_PROBE_TOKENS], hidden[:1, :_PROBE_TOKENS]
    expected = sweep.logits(ids, hidden).float()
    made = torch.nn.functional.linear(sweep.before_head(ids, hidden), head.weight, head.bias).float()
    return expected.shape == made.shape and torch.allclose(made, expected, rtol=1e-3, atol=1e-3)

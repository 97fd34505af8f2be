"""The network that says what to keep: from fixed random inputs, one per gate, logits of all units of all gates.

May import nothing of sned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

INPUTS, STATES = 32, 64
_SMALL = 0.1
"""The first logits differ from what they start at by hundredths, a tenth of what a fresh linear map would give."""


class HyperNetwork(nn.Module):
    """A bidirectional GRU over the gates, in the order of the model, then for each gate a linear map to its logits.

    Attributes:
        starts: What is added to the logits of each gate, `[units]`, and is not trained.
    """

    inputs: torch.Tensor

    def __init__(self, starts: Sequence[torch.Tensor], *, seed: int) -> None:
        super().__init__()
        sizes = [len(own) for own in starts]
        with torch.device("meta"):  # where nothing is drawn from the global generator
            self.gru = nn.GRU(INPUTS, STATES, bidirectional=True)
            self.norm = nn.LayerNorm(2 * STATES)
            self.outputs = nn.ModuleList(nn.Linear(2 * STATES, size, bias=False) for size in sizes)
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for param in self.gru.parameters():
                param.uniform_(-(STATES**-0.5), STATES**-0.5, generator=generator)
            for param in self.outputs.parameters():
                limit = _SMALL * (2 * STATES) ** -0.5
                param.uniform_(-limit, limit, generator=generator)
        self.norm.reset_parameters()
        self.register_buffer("inputs", torch.randn(len(sizes), INPUTS, generator=generator))
        self.starts = list(starts)

    def forward(self) -> list[torch.Tensor]:
        """Return the logits of being kept of every gate, `[units]` each."""
        states, _ = self.gru(self.inputs)
        states = nn.functional.gelu(self.norm(states))
        return [out(state) + start for out, state, start in zip(self.outputs, states, self.starts, strict=True)]

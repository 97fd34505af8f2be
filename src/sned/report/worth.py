"""What values of units mean, in words, for page and terminal. Imports numbers; nothing else of sned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import numbers

if TYPE_CHECKING:
    from sned.report.worth_blocks import StandIn, Worth

COLUMN = {
    "shapley": "Shapley value, nats per token",
    "loo": "rise of the loss alone, nats per token",
    "cosine": "turn of the stream, 1 − cos",
    "l1": "L1 norm of what it adds",
    "l2": "L2 norm of what it adds",
    "relative_l1": "L1 norm of what it adds / of the stream",
    "relative_l2": "L2 norm of what it adds / of the stream",
}
"""What a column of values is called, by metric."""
_MEANING = {
    "shapley": "How much the {loss} rises when a part goes, on average over {orders} orders in which all of them go, "
    "one after the other",
    "loo": "How much the {loss} rises when a part goes alone",
    "cosine": "How far each part turns the stream of hidden states, on average over the tokens",
    "l1": "The size of what each part adds to the stream of hidden states",
    "l2": "The length of what each part adds to the stream of hidden states",
    "relative_l1": "The size of what each part adds, relative to the stream of hidden states without it",
    "relative_l2": "The length of what each part adds, relative to the stream of hidden states without it",
}
STANDS = {
    "shift": "a constant, what the layers added on average",
    "scale": "a factor for each channel",
    "lowrank": "a low-rank update",
}
"""What a map is, by kind."""


def meaning(found: Worth) -> str:
    """Say what the values are, and how far they can be trusted."""
    loss = "loss" if found.objective == "perplexity" else "divergence from the base"
    said = [_MEANING[found.metric].format(loss=loss, orders=found.orders) + "; what is worth least went"]
    if found.ceiling is not None:
        most = numbers.decimal(found.ceiling)
        said.append(f"A model counts as no worse than a uniform guess, {most} nats; the rest of an order is then free")
    if found.all_gone is not None and found.base is not None:
        whole = numbers.signed(found.all_gone - found.base)
        said.append(f"Together they are worth {whole} nats per token: what the model loses without any of these parts")
    if found.agreement is not None:
        tau = numbers.decimal(found.agreement, 2)
        said.append(f"Ranked from either half of the orders, they agree to {tau} (Kendall's tau; 1 is the same order)")
    return ". ".join(said) + "."


def placed(maps: list[StandIn]) -> str:
    """Say what stands in the place of the layers that went, and how much of their work it does."""
    left = [item.left for item in maps]
    low, high = numbers.percent(min(left)), numbers.percent(max(left))
    share = low if low == high else f"{low} to {high}"
    if maps[0].which:
        where = "each attention or MLP that went" if len(maps) > 1 else "what went"
        stands = "a constant, what it added on average, as a bias of the branch before it"
    else:
        where = "each run of layers that went" if len(maps) > 1 else "the layers that went"
        stands = STANDS[maps[0].kind]
    return (
        f"In the place of {where} stands {stands}. On the calibration text that leaves {share} of the "
        f"error in the stream that plain removal leaves."
    )

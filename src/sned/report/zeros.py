"""What a report says of single weights that were set to zero, in words. Imports numbers.

The model keeps its shape and its size: no sentence here may read as if parameters or memory had become fewer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sned.report import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sned.report.schema import Report, Sparsity

_PATTERNS = {
    "matrix": "chosen within each matrix",
    "row": "chosen within each row",
    "global": "chosen among all matrices",
}
_EQUAL = 5e-4
"""Shares that differ by less are the same when they are spelled."""
_FEW = 1e-3
"""Zeros that were there before are told of from this share of the weights on."""
_NAMED = 12
"""So many matrices are named in a sentence; report.json has all."""


def outcome(found: Sparsity) -> str:
    """Say how much is zero: ``60.0% of 106 M weights in the layers' matrices are zero (47.4% of all parameters)``."""
    share, of_all = numbers.percent(found.ratio), numbers.percent(found.ratio_of_all)
    weights = numbers.count(found.of, digits=3)
    return f"{share} of {weights} weights in the layers' matrices are zero ({of_all} of all parameters)"


def choice(options: Mapping[str, object]) -> str:
    """Say how the weights were chosen, as far as the method has such options; empty where it has none."""
    said = []
    pattern, allocate = options.get("pattern"), options.get("allocate")
    if isinstance(pattern, str):
        same = pattern == "row" and options.get("variant") is True
        told = " (each row loses the same share of its scores)" if same else _meaning(pattern, allocate)
        said.append(f"pattern {pattern}{told}")
    if isinstance(allocate, str) and pattern != "global":
        said.append("uniform shares" if allocate == "uniform" else f"shares by {allocate}")
    if isinstance(refine := options.get("refine"), str):
        said.append(f"choice refined by {refine}")
    if isinstance(update := options.get("update"), bool):
        said.append(f"other weights {'updated to make up for it' if update else 'unchanged'}")
    text = ", ".join(said)
    return text[:1].upper() + text[1:]


def _meaning(pattern: str, allocate: object) -> str:
    """Say in brackets what a pattern stands for, if that is known."""
    if runs := re.fullmatch(r"(\d+):(\d+)", pattern):
        average = "" if allocate == "uniform" else ", on average over the layers"
        return f" ({runs[1]} of every {runs[2]} weights kept{average})"
    return f" ({_PATTERNS[pattern]})" if pattern in _PATTERNS else ""


def use(report: Report, found: Sparsity) -> str:
    """Say what zeros do not bring by themselves, and what can use them."""
    two_of_four = report.options.get("pattern") == "2:4" and report.options.get("allocate") == "uniform"
    return (
        "Zeros alone make a model neither smaller in memory nor faster on a CPU: it is stored as dense weights, zeros "
        "included, and runs on dense kernels. Two things can use them: PyTorch's semi-structured tensors, on recent "
        f"NVIDIA GPUs (Ampere and later) and {'for the' if two_of_four else 'only for the'} pattern 2:4"
        f"{', as here' if two_of_four else ''}; and packing on disk, as bit masks and the values that are not zero, "
        f"which would take {numbers.decimal(found.packed_ratio)} times the bytes of these matrices."
    )


def warnings(report: Report) -> list[str]:
    """Return the warnings of a report: what the reader must know of its zeros, then those met on the way.

    One line names all matrices without a usable Hessian, in place of one line for each.
    """
    found = report.sparsity
    if found is None:
        return report.warnings
    told = tuple(f"{name}: its Hessian" for name in found.diagonal)
    return [*_of_zeros(found), *(line for line in report.warnings if not line.startswith(told))]


def _of_zeros(found: Sparsity) -> list[str]:
    lines = []
    if abs(found.ratio - found.target) >= _EQUAL:
        lines.append(
            f"{numbers.percent(found.ratio)} of the weights in the layers' matrices are zero, where "
            f"{numbers.percent(found.target)} were asked for."
        )
    if found.zero_before > _FEW * found.of:
        before = f"{numbers.grouped(found.zero_before)} weights, {numbers.percent(found.zero_before / found.of)}"
        lines.append(f"{before} of the layers' matrices, were zero before this; they count towards the share.")
    if found.diagonal:
        named = ", ".join(found.diagonal[:_NAMED])
        more = f" and {len(found.diagonal) - _NAMED} more, all in report.json" if len(found.diagonal) > _NAMED else ""
        few = len(found.diagonal) == 1
        lines.append(
            f"The Hessian of {len(found.diagonal)} {'matrix' if few else 'matrices'} could not be factored, so only "
            f"its diagonal was used: {named}{more}."
        )
    return lines


def shares(found: Sparsity) -> dict[tuple[int, str], float]:
    """Return the share of zeros of every matrix that has weights, by layer and role."""
    return {(item.layer, item.role): item.zeros / item.of for item in found.matrices if item.of}


def by_layer(found: Sparsity) -> dict[int, float]:
    """Return the share of zeros in the matrices of every layer together."""
    zeros: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for item in found.matrices:
        zeros[item.layer] = zeros.get(item.layer, 0) + item.zeros
        sizes[item.layer] = sizes.get(item.layer, 0) + item.of
    return {layer: zeros[layer] / size for layer, size in sizes.items() if size}


def even(found: Sparsity) -> str:
    """Say that all matrices have the same share of zeros; empty where they differ, which a picture shows."""
    values = shares(found).values()
    if not values or max(values) - min(values) >= _EQUAL:
        return ""
    return f"All {len(values)} matrices have the same share of zeros: {numbers.percent(found.ratio)} each."

"""Fitting a linear map T between two sets of token states, `M T ≈ Z`, from moments or from the states themselves.

Closed forms work in float64 on the moments `G = MᵀM` and `H = MᵀZ`; iterative ones run Adam on the states. The
ridge is relative: strength ρ means `ρ · mean(diag G)`. Pure functions of tensors (ReplaceMe, arXiv 2505.02819,
§3 and appendix A; the ridge towards the identity, the rank-1 and the triangular closed forms are ours).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from sned.errors import NumericalError

if TYPE_CHECKING:
    from collections.abc import Callable

Structure = Literal["full", "diagonal", "orthogonal", "lower", "rank1"]

MAX_CONDITION = 1e12
NOISE_MARGIN = 4.0


@dataclass(frozen=True, slots=True)
class Moments:
    """What the closed forms need to know of states `M` and targets `Z`, both `[tokens, hidden]`, in float64."""

    gram: torch.Tensor
    """`MᵀM` `[hidden, hidden]`"""
    cross: torch.Tensor
    """`MᵀZ` `[hidden, hidden]`"""
    target_square: float
    """`‖Z‖²`"""
    tokens: int


@dataclass(frozen=True, slots=True)
class MapFit:
    """A fitted map and what is known of the system it solves."""

    matrix: torch.Tensor
    """`[hidden, hidden]`, float64"""
    rank: int
    condition: float
    """Of the regularised Gram matrix; at least this, where it was only estimated."""
    relative_error: float
    """`‖M T - Z‖ / ‖Z‖` over the tokens of the fit."""


def fit_closed(
    moments: Moments, *, structure: Structure = "full", ridge: float = 0.0, towards_identity: bool = True
) -> MapFit:
    """Return the least-squares map of a structure.

    Raises:
        NumericalError: the moments are not finite.
    """
    _require_finite(moments)
    gram, cross = moments.gram, moments.cross
    strength = ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype)
    damped = gram + strength * eye
    target = cross + strength * eye if towards_identity else cross
    solve, rank, condition = _factorise(damped)
    match structure:
        case "full":
            matrix = solve(target)
        case "diagonal":
            matrix = torch.diag(target.diagonal() / damped.diagonal().clamp_min(torch.finfo(gram.dtype).tiny))
        case "orthogonal":
            u, _, vh = torch.linalg.svd(target)
            matrix = u @ vh
        case "lower":
            matrix = _solve_lower(damped, target)
        case "rank1":
            down, up = _solve_low_rank(damped, solve(target), 1)
            matrix = down @ up
    return MapFit(matrix, rank, condition, relative_error(moments, matrix))


def fit_low_rank(moments: Moments, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `A` `[hidden, rank]` and `B` `[rank, hidden]` of the least-squares map `A B` of this rank.

    Without a ridge: so few directions are fitted that one does more harm than good (measured down to 3.5 tokens a
    feature).

    Raises:
        NumericalError: the moments are not finite.
    """
    _require_finite(moments)
    solve, _, _ = _factorise(moments.gram)
    return _solve_low_rank(moments.gram, solve(moments.cross), rank)


def _require_finite(moments: Moments) -> None:
    if not (torch.isfinite(moments.gram).all() and torch.isfinite(moments.cross).all()):
        raise NumericalError("the states of the fit hold NaN or infinity", hint="try --dtype fp32")


def relative_error(moments: Moments, matrix: torch.Tensor) -> float:
    """Return `‖M T - Z‖ / ‖Z‖` from the moments alone."""
    square = (matrix * (moments.gram @ matrix)).sum() - 2 * (matrix * moments.cross).sum() + moments.target_square
    return float((square.clamp_min(0.0) / moments.target_square) ** 0.5) if moments.target_square else 0.0


def _factorise(matrix: torch.Tensor) -> tuple[Callable[[torch.Tensor], torch.Tensor], int, float]:
    """Return a solver for a symmetric matrix, its rank and its condition: by Cholesky, or by its large eigenvalues."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if not int(info):
        condition = _condition(matrix, lower)
        if condition <= MAX_CONDITION:
            return lambda right: torch.cholesky_solve(right, lower), len(matrix), condition
    values, vectors = torch.linalg.eigh(matrix)
    large = values > _noise(values)
    basis = vectors[:, large]
    inverse = (basis / values[large]) @ basis.T
    condition = float(values[-1] / values[0]) if values[0] > 0 else sys.float_info.max
    return lambda right: inverse @ right, int(large.sum()), condition


def _noise(values: torch.Tensor) -> torch.Tensor:
    """Return the size up to which ascending eigenvalues of a Gram matrix are rounding.

    A Gram matrix has none below zero, so one that is there shows how far the products behind the sums are off.
    """
    return torch.maximum(values[-1].clamp_min(0) / MAX_CONDITION, NOISE_MARGIN * (-values[0]).clamp_min(0))


def _condition(matrix: torch.Tensor, lower: torch.Tensor, steps: int = 30) -> float:
    """Estimate a condition number from below, by power iteration on a matrix and on its inverse."""
    largest = smallest = torch.ones(len(matrix), 1, dtype=matrix.dtype) / len(matrix) ** 0.5
    top = bottom = torch.tensor(1.0, dtype=matrix.dtype)
    for _ in range(steps):
        largest, smallest = matrix @ largest, torch.cholesky_solve(smallest, lower)
        top, bottom = largest.norm(), smallest.norm()
        largest, smallest = largest / top, smallest / bottom
    return float(top * bottom)


def _solve_lower(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """Solve for a lower triangular map: column j uses the features from j on.

    The trailing blocks of a matrix are the leading ones of its reversal, whose Cholesky factors nest.
    """
    reversed_factor, info = torch.linalg.cholesky_ex(gram.flip(0, 1))
    if int(info):
        tiny = torch.finfo(gram.dtype).tiny ** 0.5
        jitter = _noise(torch.linalg.eigvalsh(gram)).clamp_min(tiny)
        reversed_factor = torch.linalg.cholesky((gram + jitter * torch.eye(len(gram), dtype=gram.dtype)).flip(0, 1))
    right = cross.flip(0)
    matrix = torch.zeros_like(gram)
    for j in range(len(gram)):
        size = len(gram) - j
        column = torch.cholesky_solve(right[:size, j : j + 1], reversed_factor[:size, :size])
        matrix[j:, j] = column.flip(0)[:, 0]
    return matrix


def _solve_low_rank(gram: torch.Tensor, full: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of the best map of a rank: the leading part of the full solution, in the metric of the states.

    That is reduced-rank regression; rows of the second factor are orthonormal.
    """
    values, vectors = torch.linalg.eigh(gram)
    large = values > _noise(values)
    scale = torch.where(large, values, 0.0).sqrt()
    root = (vectors * scale) @ vectors.T
    inverse = (vectors * torch.where(large, 1 / scale, 0.0)) @ vectors.T
    u, s, vh = torch.linalg.svd(root @ full)
    return inverse @ (u[:, :rank] * s[:rank]), vh[:rank]


@dataclass(frozen=True, slots=True)
class AdamOptions:
    """How an iterative fit runs; the defaults are the paper's."""

    loss: Literal["cosine", "mse"] = "cosine"
    structure: Structure = "full"
    epochs: int = 10
    batch_tokens: int = 1024
    lr: float = 1e-4
    l1: float = 0.0
    l2: float = 0.0
    rescale: bool = True
    """Recover the scale of the map afterwards: the cosine does not see it."""


def fit_adam(
    states: torch.Tensor,
    target: torch.Tensor,
    options: AdamOptions,
    *,
    generator: torch.Generator,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the map that Adam finds over minibatches of tokens, starting at the identity.

    Args:
        states: `M` `[tokens, hidden]`, any float dtype.
        target: `Z` `[tokens, hidden]`.
        options: Loss, structure, penalties and schedule.
        generator: Shuffles the tokens, once per epoch.
        offset: Added to `M T` before the comparison (the paper's eq. 7); none for its eq. 8.

    Returns:
        `[hidden, hidden]`, float64.

    Raises:
        NumericalError: the loss is not finite.
    """
    hidden = states.shape[-1]
    params, build = _parametrise(options.structure, hidden)
    optimiser = torch.optim.Adam(params, lr=options.lr)
    with torch.enable_grad():
        for _ in range(options.epochs):
            order = torch.randperm(len(states), generator=generator)
            for rows in order.split(options.batch_tokens):
                matrix = build()
                made, wanted = states[rows].float() @ matrix, target[rows].float()
                if offset is not None:
                    made = made + offset[rows].float()
                loss = _loss(options, made, wanted)
                loss = loss + options.l1 * matrix.abs().sum() + options.l2 * matrix.square().sum()
                if not torch.isfinite(loss):
                    raise NumericalError("the loss of the linear map is not finite", hint="lower --set lr")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    matrix = build().detach()
    if options.rescale and options.loss == "cosine" and options.structure != "orthogonal" and offset is None:
        matrix = matrix * _best_scale(states, target, matrix)
    return matrix.double()


def _loss(options: AdamOptions, made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    if options.loss == "mse":
        return torch.nn.functional.mse_loss(made, wanted)
    return 1 - torch.nn.functional.cosine_similarity(made, wanted, dim=-1).mean()


def _best_scale(states: torch.Tensor, target: torch.Tensor, matrix: torch.Tensor) -> float:
    """Return the factor c that minimises `‖c M T - Z‖`."""
    inner = square = 0.0
    for m, z in zip(states.split(8192), target.split(8192), strict=True):
        made = m.float() @ matrix
        inner += float((made * z.float()).sum(dtype=torch.float64))
        square += float(made.square().sum(dtype=torch.float64))
    return inner / square if square else 1.0


def _parametrise(structure: Structure, hidden: int) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor]]:
    """Return the trainable tensors of a structure, and the function that builds the map from them."""
    eye = torch.eye(hidden)
    if structure == "diagonal":
        diagonal = torch.ones(hidden, requires_grad=True)
        return [diagonal], lambda: torch.diag(diagonal)
    if structure == "rank1":
        # the best rank-1 part of the identity is any axis; a uniform start treats all features alike
        u = torch.full((hidden, 1), hidden**-0.5, requires_grad=True)
        v = torch.full((1, hidden), hidden**-0.5, requires_grad=True)
        return [u, v], lambda: u @ v
    weight = torch.zeros(hidden, hidden) if structure == "orthogonal" else eye.clone()
    weight.requires_grad_()
    if structure == "orthogonal":
        return [weight], lambda: torch.linalg.matrix_exp(weight - weight.T)
    if structure == "lower":
        return [weight], lambda: weight.tril()
    return [weight], lambda: weight

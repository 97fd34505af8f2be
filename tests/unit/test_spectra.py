"""The tail of a spectrum: against loops over its eigenvalues, and on power laws whose exponent is known."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from sned.errors import NumericalError
from sned.score import spectra
from sned.score.spectra import Estimator, eigenvalues, tail_index, windowed_eigenvalues

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def power_law(alpha: float, n: int, seed: int = 0) -> torch.Tensor:
    """A sample of a Pareto distribution from 1 on, ascending."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (uniform ** (1 / (1 - alpha))).sort().values


def spectrum(seed: int, n: int = 60) -> torch.Tensor:
    """Of a matrix with some strong directions."""
    return eigenvalues(draw(seed, n, n + 20) * torch.linspace(0, 2.5, n, dtype=torch.float64).exp()[:, None])


def brute_force(values: list[float], estimator: Estimator) -> float:
    """The definitions, one eigenvalue and one distance at a time."""
    count = len(values)

    def fit(i: int) -> tuple[float, float]:
        tail = values[i:]
        n = len(tail)
        alpha = 1 + n / (sum(math.log(x) for x in tail) - n * math.log(values[i]))
        return max(abs(1 - (x / values[i]) ** (1 - alpha) - k / n) for k, x in enumerate(tail)), alpha

    if estimator == "mid":
        return fit(count // 2)[1]
    logs = [math.log10(x) for x in values]
    width = (logs[-1] - logs[0]) / 100
    bins = [0] * 100
    for x in logs:
        bins[min(int((x - logs[0]) / width), 99)] += 1
    x2 = 10 ** (logs[0] + bins.index(max(bins)) * width)
    lower = 0.95 * x2 if estimator == "peak" else 0.0
    starts = [i for i in range(count - 1) if lower <= values[i] <= 1.5 * x2]
    return min((fit(i) for i in starts), key=lambda found: found[0])[1]


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5), (1, 4)])
def test_eigenvalues_are_the_squared_singular_values(shape: tuple[int, int]) -> None:
    weight = draw(0, *shape)
    got = eigenvalues(weight.float())
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, torch.linalg.svdvals(weight.float().double()).square().flip(0))


def test_directions_that_do_nothing_have_no_negative_eigenvalue() -> None:
    low_rank = draw(0, 20, 3) @ draw(1, 3, 30)
    assert eigenvalues(low_rank).amin() >= 0
    padded = torch.cat([torch.zeros(17, dtype=torch.float64), eigenvalues(low_rank)[-3:]])
    assert tail_index(eigenvalues(low_rank)) == pytest.approx(tail_index(padded[-3:]))
    assert tail_index(padded) == tail_index(padded[-3:])


def test_weights_that_are_not_finite_are_told() -> None:
    weight = draw(0, 4, 6)
    weight[1, 2] = torch.nan
    for spectrum_of in (eigenvalues, windowed_eigenvalues):
        with pytest.raises(NumericalError, match="NaN or infinity"):
            spectrum_of(weight)


@every_estimator
@pytest.mark.parametrize("seed", range(8))
def test_the_exponent_is_that_of_the_definitions(seed: int, estimator: Estimator) -> None:
    values = spectrum(seed, 59 + seed % 2)
    assert tail_index(values, estimator) == pytest.approx(brute_force(values.tolist(), estimator), rel=1e-9)


def test_the_estimators_differ() -> None:
    assert len({round(tail_index(spectrum(0), estimator), 3) for estimator in ESTIMATORS}) == 3


@every_estimator
@pytest.mark.parametrize("chunk", [1, 7 * 60 + 3])
def test_little_memory_gives_the_same(chunk: int, estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    values = spectrum(3)
    want = tail_index(values, estimator)
    monkeypatch.setattr(spectra, "CHUNK", chunk)
    assert tail_index(values, estimator) == want


@every_estimator
@pytest.mark.parametrize("alpha", [1.8, 3.0, 4.5])
def test_the_exponent_of_a_power_law_is_found(alpha: float, estimator: Estimator) -> None:
    n = 4000
    error = (alpha - 1) / math.sqrt(n / 2)  # of a tail that starts at the median
    assert tail_index(power_law(alpha, n), estimator) == pytest.approx(alpha, abs=3 * error)


@every_estimator
@pytest.mark.parametrize("scale", [1e-6, 3.7, 1e5])
def test_the_scale_of_the_weights_does_not_matter(scale: float, estimator: Estimator) -> None:
    weight = draw(5, 40, 60)
    want = tail_index(eigenvalues(weight), estimator)
    assert tail_index(eigenvalues(scale * weight), estimator) == pytest.approx(want, rel=1e-6)


@every_estimator
def test_a_heavier_tail_has_a_smaller_exponent(estimator: Estimator) -> None:
    light, heavy = (tail_index(power_law(alpha, 500), estimator) for alpha in (4.0, 2.0))
    assert heavy < light


@every_estimator
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_a_flat_or_an_empty_spectrum_has_an_infinite_exponent(n: int, estimator: Estimator) -> None:
    assert tail_index(torch.full((n,), 0.3, dtype=torch.float64), estimator) == math.inf
    assert tail_index(torch.zeros(n, dtype=torch.float64), estimator) == math.inf
    one = torch.zeros(n + 1, dtype=torch.float64)
    one[-1] = 2.0
    assert tail_index(one, estimator) == math.inf


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_orthogonal_matrix_has_an_infinite_exponent(dtype: torch.dtype, estimator: Estimator) -> None:
    orthogonal = torch.linalg.qr(draw(0, 96, 64).to(dtype)).Q
    assert tail_index(eigenvalues(orthogonal), estimator) == math.inf


@every_estimator
def test_two_eigenvalues_are_enough(estimator: Estimator) -> None:
    got = tail_index(torch.tensor([1.0, math.e], dtype=torch.float64), estimator)
    assert got == pytest.approx(3)  # 1 + 2 / (0 + 1)


def test_a_tail_of_equal_eigenvalues_is_the_last_choice() -> None:
    ties = torch.tensor([1.0, 1.2, 1.3, 1.4, 1.4, 1.4], dtype=torch.float64)
    assert math.isfinite(tail_index(ties, "compat"))
    assert tail_index(ties, "peak") == math.inf  # it starts at the ties, where most eigenvalues are
    assert tail_index(ties, "mid") == math.inf


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_the_window_is_never_empty(n: int) -> None:
    """Not even for the widest bins that the limit for zeros allows."""
    for power in (1, 5, 40):  # the fullest bin moves to the smallest eigenvalues
        share = torch.linspace(0, 1, n, dtype=torch.float64) ** power
        for logs in (share, 1 - share.flip(0)):
            assert tail_index(10 ** (11.99 * logs), "peak") > 1


def test_windows_tile_a_matrix_that_their_side_divides() -> None:
    weight = draw(0, 12, 8)
    tiles = [weight[r : r + 4, c : c + 4] for r in (0, 4, 8) for c in (0, 4)]
    want = torch.cat([eigenvalues(tile) for tile in tiles]).sort().values
    torch.testing.assert_close(windowed_eigenvalues(weight, 4, 3), want)


def test_windows_reach_from_edge_to_edge() -> None:
    weight = draw(0, 10, 4)
    parts = [weight[row : row + 4] for row in (0, 3, 6)]
    torch.testing.assert_close(
        windowed_eigenvalues(weight, 9), torch.cat([eigenvalues(p) for p in parts]).sort().values
    )
    ends = [weight[:2, :2], weight[:2, 2:], weight[8:, :2], weight[8:, 2:]]
    want = torch.cat([eigenvalues(end) for end in ends]).sort().values
    torch.testing.assert_close(windowed_eigenvalues(weight, 2, 2), want)


def test_a_square_matrix_within_the_limit_is_one_window() -> None:
    weight = draw(0, 20, 20)
    torch.testing.assert_close(windowed_eigenvalues(weight), eigenvalues(weight))


def test_windows_make_shapes_comparable() -> None:
    """Noise of any shape is as untrained; whole spectra say that the wide matrices are quite something else."""
    shapes = ((96, 96), (24, 96), (96, 24), (288, 96))
    noise = [draw(seed, *shape) for seed, shape in enumerate(shapes)]
    whole = [tail_index(eigenvalues(weight), "mid") for weight in noise]
    windowed = [tail_index(windowed_eigenvalues(weight, 24), "mid") for weight in noise]
    assert max(windowed) - min(windowed) < 0.2 * (max(whole) - min(whole))

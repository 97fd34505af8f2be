"""From shares to whole numbers of weights: the budget is met to the last one, whatever an allocator proposes."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest
import torch

from sned.errors import BudgetError, ConfigError
from sned.models.matrices import Matrix
from sned.runtime.quotas import MOST, UNIFORM, Shares, by_layer, matrix_counts, quotas, require_pattern, require_room
from sned.score.apportion import project
from sned.score.quota import MatrixQuota, RowQuota, RunQuota, parse_n_of_m

if TYPE_CHECKING:
    from sned.score.quota import Quota

LAYERS = 5


def layer_of(index: int, columns: int = 24) -> list[Matrix]:
    shapes = {"q": (20, columns), "v": (5, columns), "o": (columns, 20), "up": (33, columns), "down": (columns, 36)}
    return [
        Matrix(index, "mlp" if role in ("up", "down") else "attn", role, role, rows, width)
        for role, (rows, width) in shapes.items()
    ]


MATRICES = [matrix for layer in range(LAYERS) for matrix in layer_of(layer)]
WEIGHTS = sum(matrix.size for matrix in MATRICES)
WILD = Shares({m.name: share for m, share in zip(MATRICES, torch.linspace(-2, 3, len(MATRICES)).tolist(), strict=True)})
DEEP = by_layer(MATRICES, {layer: 0.3 + 0.1 * layer for layer in range(LAYERS)})
SHARES = {"uniform": UNIFORM, "wild": WILD, "deep": DEEP}
every_share = pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
sparsities = pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.37, 0.5, 0.7, 0.95, MOST])


def selected(wanted: dict[str, Quota], name: str) -> torch.Tensor:
    """The mask that a quota makes of random scores with many ties."""
    (matrix,) = (m for m in MATRICES if m.name == name)
    scores = torch.randint(4, (matrix.rows, matrix.columns), generator=torch.Generator().manual_seed(matrix.layer))
    return wanted[name].select(scores.float())


@every_share
@sparsities
@pytest.mark.parametrize("pattern", ["row", "matrix"])
def test_the_budget_is_met_to_the_last_weight(shares: Shares, sparsity: float, pattern: str) -> None:
    wanted = quotas(MATRICES, shares, sparsity, pattern)
    assert list(wanted) == [matrix.name for matrix in MATRICES]
    assert sum(quota.total for quota in wanted.values()) == round(sparsity * WEIGHTS)
    for name, quota in wanted.items():
        assert int(selected(wanted, name).sum()) == quota.total


@every_share
@sparsities
def test_no_allocator_empties_a_matrix_or_reverses_an_order(shares: Shares, sparsity: float) -> None:
    counts = matrix_counts(MATRICES, shares, sparsity)
    got = [count / matrix.size for count, matrix in zip(counts, MATRICES, strict=True)]
    assert all(0 <= count <= MOST * m.size + 1 for count, m in zip(counts, MATRICES, strict=True))
    raw = [0.0 if shares.matrices is None else shares.matrices[m.name] for m in MATRICES]
    for (mine, a, x), (theirs, b, y) in itertools.combinations(zip(raw, got, MATRICES, strict=True), 2):
        one_weight = 1 / x.size + 1 / y.size
        assert a <= b + one_weight if mine <= theirs else a >= b - one_weight


@sparsities
@pytest.mark.parametrize("pattern", ["row", "matrix"])
def test_uniform_is_within_one_weight_everywhere(sparsity: float, pattern: str) -> None:
    wanted = quotas(MATRICES, UNIFORM, sparsity, pattern)
    for matrix in MATRICES:
        quota = wanted[matrix.name]
        assert abs(quota.total - sparsity * matrix.size) < 1
        if isinstance(quota, RowQuota):
            assert quota.counts.shape == (matrix.rows,)
            assert int(quota.counts.max() - quota.counts.min()) <= 1
            assert selected(wanted, matrix.name).sum(1).tolist() == quota.counts.tolist()


def test_uniform_may_ask_for_more_than_an_allocator() -> None:
    assert sum(matrix_counts(MATRICES, UNIFORM, 0.999)) == round(0.999 * WEIGHTS)
    with pytest.raises(BudgetError, match=r"0\.999 cannot be reached: the closest is 0\.99$"):
        matrix_counts(MATRICES, DEEP, 0.999)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, MOST])
@pytest.mark.parametrize("shares", [None, DEEP.matrices], ids=["uniform", "deep"])
def test_rows_differ_within_what_their_matrix_loses(sparsity: float, shares: dict[str, float] | None) -> None:
    chosen = {m.name: torch.linspace(-0.5, 1.5, m.rows).double() for m in MATRICES if m.role in ("v", "up")}
    wanted = quotas(MATRICES, Shares(shares, chosen), sparsity, "row")
    counts = matrix_counts(MATRICES, Shares(shares), sparsity)
    for matrix, count in zip(MATRICES, counts, strict=True):
        quota = wanted[matrix.name]
        assert isinstance(quota, RowQuota)
        assert quota.total == count
        assert 0 <= int(quota.counts.min()) <= int(quota.counts.max()) <= matrix.columns
        assert int(quota.counts.diff().min()) >= -1, "more was asked of later rows, to rounding"
        span = int(quota.counts.max() - quota.counts.min())
        if matrix.name not in chosen:
            assert span <= 1
        elif 0.2 < count / matrix.size < 0.8:
            assert span > matrix.columns / 4


@pytest.mark.parametrize("pattern", ["matrix", "2:4"])
def test_rows_that_differ_need_rows(pattern: str) -> None:
    shares = Shares(rows={MATRICES[0].name: torch.full((MATRICES[0].rows,), 0.5)})
    with pytest.raises(ConfigError, match=f"need the pattern row, not {pattern}"):
        quotas(MATRICES, shares, 0.5, pattern)


@pytest.mark.parametrize(("pattern", "keep", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:4", 3, 4), ("1:2", 1, 2)])
@every_share
def test_patterns_keep_the_total_whoever_allocates(shares: Shares, pattern: str, keep: int, m: int) -> None:
    wanted = quotas(MATRICES, shares, 1 - keep / m, pattern)
    assert sum(quota.total for quota in wanted.values()) == WEIGHTS // m * (m - keep)
    kept: dict[int, set[int]] = {}
    for matrix in MATRICES:
        quota = wanted[matrix.name]
        assert isinstance(quota, RunQuota)
        kept.setdefault(matrix.layer, set()).add(quota.keep)
        runs = selected(wanted, matrix.name).view(-1, m).sum(1)
        assert runs.tolist() == [m - quota.keep] * len(runs)
    assert all(len(each) == 1 and min(each) >= 1 for each in kept.values()), "a layer has one pattern, and is left some"
    if shares is UNIFORM:
        assert set.union(*kept.values()) == {keep}


def mixed() -> list[Matrix]:
    """Layers of several sizes, one of which lacks its MLP."""
    small = [matrix for matrix in layer_of(2) if matrix.which == "attn"]
    return [*layer_of(0), *layer_of(1, 48), *small, *layer_of(3), *layer_of(4, 48)]


@pytest.mark.parametrize("raw", [(0.7, 0.8, 0.9, 0.6, 0.75), (0.2, 0.9, 0.9, 0.9, 0.9), (1, 0, 1, 0, 1)])
@pytest.mark.parametrize(("pattern", "keep"), [("2:4", 2), ("3:4", 3)])
def test_no_other_patterns_are_closer_to_the_shares(raw: tuple[float, ...], pattern: str, keep: int) -> None:
    matrices = mixed()
    sizes = torch.tensor([sum(m.size for m in matrices if m.layer == layer) for layer in range(LAYERS)])
    fitting = project(torch.tensor(raw, dtype=torch.float64), sizes, 1 - keep / 4, 0.0, MOST)

    def cost(zeros: tuple[int, ...]) -> float:
        return float(sizes.double() @ (torch.tensor(zeros) / 4 - fitting).square())

    wanted = quotas(matrices, by_layer(matrices, dict(enumerate(raw))), 1 - keep / 4, pattern)
    got = {m.layer: quota.keep for m in matrices if isinstance(quota := wanted[m.name], RunQuota)}
    total = int(sizes.sum()) // 4 * (4 - keep)
    assert sum(quota.total for quota in wanted.values()) == total
    ways = [z for z in itertools.product(range(4), repeat=LAYERS) if int(torch.tensor(z) @ sizes) // 4 == total]
    assert len(ways) > 1
    assert cost(tuple(4 - got[layer] for layer in range(LAYERS))) == pytest.approx(min(map(cost, ways)), rel=1e-9)


def test_shares_of_matrices_are_their_layers_mean_in_a_pattern() -> None:
    """One pattern serves a layer: what its matrices would lose counts by their weights."""
    matrices = layer_of(0) + layer_of(1)
    shares = {m.name: 0.0 if m.layer == 0 else 0.5 for m in matrices}
    shares["layers.0.mlp.down"] = 1.0
    mean = 24 * 36 / sum(m.size for m in layer_of(0))
    assert 0.25 < mean < 0.5
    wanted = quotas(matrices, Shares(shares), 0.5, "4:8")
    assert wanted == quotas(matrices, by_layer(matrices, {0: mean, 1: 0.5}), 0.5, "4:8")
    assert wanted["layers.0.attn.q"].total < wanted["layers.1.attn.q"].total


def test_what_tells_quotas_apart_is_json() -> None:
    rows = [torch.tensor(counts) for counts in ([1, 1, 2, 2], [2, 2, 1, 1], [1, 2, 1, 2], [1, 1, 1, 3], [3, 3, 0])]
    some: list[Quota] = [RowQuota(counts) for counts in rows]
    some += [MatrixQuota(6), MatrixQuota(7), RunQuota(2, 4, 12), RunQuota(1, 2, 12)]
    written = [json.dumps(quota.label) for quota in some]
    assert len(set(written)) == len(some)
    assert [json.loads(text) for text in written] == [quota.label for quota in some]
    assert [quota.total for quota in some] == [6, 6, 6, 6, 6, 6, 7, 6, 6]


class TestPatterns:
    @pytest.mark.parametrize(("text", "want"), [("2:4", (2, 4)), ("1:16", (1, 16)), ("row", None), ("2:4:8", None)])
    def test_they_are_read(self, text: str, want: tuple[int, int] | None) -> None:
        assert parse_n_of_m(text) == want

    @pytest.mark.parametrize(("text", "words"), [("0:4", "keeps 0 of every 4"), ("4:4", "keeps 4"), ("4:2", "keeps 4")])
    def test_all_and_none_are_no_pattern(self, text: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            parse_n_of_m(text)

    @pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:3", 1 - 1 / 3), ("row", 0.123), ("1:4", 0.75)])
    def test_what_fits_is_let_through(self, pattern: str, sparsity: float) -> None:
        require_pattern(layer_of(0, 12)[:2], sparsity, pattern)

    def test_another_sparsity_is_told(self) -> None:
        with pytest.raises(ConfigError, match=r"1:4 sets 0\.75 of the weights to zero, not 0\.5\b[\s\S]*give 0\.75"):
            require_pattern(MATRICES, 0.5, "1:4")

    @pytest.mark.parametrize(
        ("pattern", "words"),
        [("3:6", r"layers\.0\.attn\.o has 20 columns, .* runs of 6"), ("4:8", r"layers\.0\.attn\.o has 20 columns")],
    )
    def test_the_matrix_that_does_not_divide_is_named(self, pattern: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            require_pattern(MATRICES, 0.5, pattern)

    def test_room_is_left_for_allocators(self) -> None:
        require_room(MOST, "row")
        require_room(0.75, "2:8")
        with pytest.raises(BudgetError, match=r"--sparsity 0\.995 leaves an allocator no room"):
            require_room(0.995, "matrix")
        with pytest.raises(ConfigError, match=r"the pattern 1:4 leaves an allocator no room[\s\S]*uniform"):
            require_room(0.75, "1:4")

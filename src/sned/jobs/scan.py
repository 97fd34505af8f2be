"""How much every part of a model matters, by all the cheap scores at once; if asked, also what allocators make of it.

May import everything below `jobs`, and its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned import __version__
from sned.checkpoint.folders import atomic_folder
from sned.jobs import compose
from sned.jobs.profiles import profiles
from sned.jobs.session import Recorder, Session, open_model, read_text
from sned.report.scan_picture import render
from sned.runtime.context import Context
from sned.runtime.method import CALIBRATION_TOKENS
from sned.runtime.statistics import Distances, Influence
from sned.score.select import ranked_cuts

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.data.tokens import Tokens
    from sned.jobs.request import LoadRequest, ProfilesRequest, TextRequest
    from sned.models.view import View
    from sned.progress import Progress
    from sned.runtime.statistics import Metric

SCHEMA = 1
JSON_FILE, PAGE_FILE = "scan.json", "scan.html"


def scan(
    load: LoadRequest,
    calibration: TextRequest,
    seed: int,
    progress: Progress,
    side_by_side: ProfilesRequest | None = None,
) -> dict[str, Any]:
    """Return what one pass over calibration text tells of every layer; JSON.

    ``influence`` is one minus the mean cosine between the stream without and with a part, ``relative`` the mean
    size of what the layer adds beside what enters it; null for a part that is not there. ``distance[s][n]`` is the
    mean angle, as a share of half a turn, between the streams entering layers `s` and `s + n`. ``profiles`` is null
    unless allocators were asked for, which takes further passes.

    Raises:
        SnedError: the model or the text cannot be read, an activation is not finite, or an allocator cannot serve.
    """
    session = Session(Recorder(progress))
    model = open_model(load, session)
    with session.phase("calibrate"):
        tokens = read_text(model, calibration, CALIBRATION_TOKENS, seed=seed)
    view, depth = model.view, model.view.geometry.n_layers
    # first, for it may be refused
    shares = None if side_by_side is None else profiles(view, tokens, side_by_side, seed, session)
    *parts, triangles = _measured(view, tokens, seed, session)
    return {
        "schema": SCHEMA,
        "sned": __version__,
        "model": _of_model(model),
        "seed": seed,
        "calibration": compose.of_text(tokens),
        "layers": [_row(i, part) for i, part in zip(view.layers, parts, strict=True)],
        "distance": {name: _by_length(square, depth) for name, square in triangles.items()},
        "best_cuts": best_cuts(triangles["angular"], depth),
        "profiles": shares,
        "cost": compose.of_cost(session),
        "warnings": session.progress.warnings,
    }


def best_cuts(angular: Sequence[Sequence[float]], depth: int) -> list[dict[str, Any]]:
    """Return the nearest cut of every length, the first and the last layer being kept.

    Args:
        angular: `[s][e]`, the distance between the streams entering layers `s` and `e`.
        depth: Number of layers.
    """
    found = []
    for n in range(1, depth - 1):
        start, end = ranked_cuts(angular, n, range(1, depth))[0]
        found.append({"layers": n, "start": start, "end": end, "distance": angular[start][end]})
    return found


def write(result: dict[str, Any], out: Path, *, overwrite: bool) -> None:
    """Write a scan as JSON and as a page with its pictures; the folder is whole or absent.

    Raises:
        CheckpointError: the folder is taken or cannot be written.
    """
    with atomic_folder(out, overwrite=overwrite) as folder:
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(render(result), encoding="utf-8")


def _measured(view: View, tokens: Tokens, seed: int, session: Session) -> list[dict[str, Any]]:
    """Return what one pass tells of each layer, and last the distances."""
    with session.phase("calibrate"):
        context = Context(view, view, tokens, seed, progress=session.progress, cost=session.cost)
        return context.collect(*(_influence(view, i) for i in view.layers), _distances(view), label="scan")


def _of_model(model: Model) -> dict[str, Any]:
    view, mark = model.view, model.view.fingerprint
    return {
        "source": model.source,
        "family": mark.model_type,
        "weights": mark.weights,
        "layers": view.geometry.n_layers,
        "hidden": view.geometry.hidden,
        "dtype": str(view.dtype).removeprefix("torch."),
    }


def _influence(view: View, index: int) -> Influence:
    return Influence(index, index + 1, has_attn=view.has_branch(index, "attn"), has_mlp=view.has_branch(index, "mlp"))


def _distances(view: View) -> Distances:
    return Distances([*view.layers, view.geometry.n_layers])


def _row(layer: int, parts: dict[str, dict[Metric, float]]) -> dict[str, Any]:
    turned = {part: values["cosine"] for part, values in parts.items()}
    return {
        "layer": layer,
        "influence": _number(turned["layer"]),
        "attention": _number(turned.get("attn")),
        "mlp": _number(turned.get("mlp")),
        "relative": _number(parts["layer"]["relative_l2"]),
    }


def _by_length(square: Sequence[Sequence[float]], depth: int) -> list[list[float | None]]:
    return [[_number(square[s][s + n]) for n in range(depth - s + 1)] for s in range(depth)]


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value

"""A classifier out of the first layers of a model: Chip-Tuning. May import everything below `jobs`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from sned import __version__
from sned.checkpoint.classifier import require_classifiable, save_classifier, verify_classifier
from sned.checkpoint.folders import atomic_folder, check_output
from sned.data.labelled import Labelled, read_labelled, require_classes, require_known, split
from sned.errors import ConfigError
from sned.jobs import compose
from sned.jobs.session import Recorder, Session, open_model, spare_source, unfinished_work
from sned.models.count import count
from sned.plans.ops import DropLayers
from sned.report import card, classifier
from sned.runtime.probing import last_states
from sned.score.probes import Probe, accuracy, shallowest, solve_probe, standard_error, train_probe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sned.checkpoint.model import Model
    from sned.jobs.request import ClassifyRequest
    from sned.progress import Progress
    from sned.runtime.journal import Journal

SCHEMA = 1
Place = tuple[torch.Tensor, torch.Tensor]
"""States `[layers, texts, hidden]`, and the numbers `[texts]` of their classes."""


def classify(request: ClassifyRequest, progress: Progress) -> dict[str, Any]:
    """Write the shallowest classifier that is as good as any, and return what was found at every depth; JSON.

    Source: Chip-Tuning (arXiv:2410.06541). Departures: depth is chosen on held-out texts, by the one-standard-error
    rule, and never on those it is judged by; the layers after the probe all go, with the output head; texts are
    masked where they are filled up; the result is a stock classifier, whose head has no intercept and follows the
    final norm.

    Raises:
        DataError: the files are malformed, or their classes do not go together.
        SnedError: any other; the output is then whole or absent.
    """
    session = Session(Recorder(progress))
    check_output(request.out, overwrite=request.overwrite)
    data, classes = _read(request, session)
    model = open_model(request.load, session)
    spare_source(model, request.out)
    require_classifiable(model.view)
    depth = model.view.geometry.n_layers
    if request.layers is not None and request.layers > depth:
        raise ConfigError(f"--layers {request.layers}: the model has {depth} layers", hint=f"give 1 to {depth}")
    facts = {name: part.digest for name, part in data.items()}
    facts |= {"model": asdict(model.view.fingerprint), "dtype": str(model.view.dtype), "seq_len": request.seq_len}
    with unfinished_work(request.out, facts, resume=request.resume) as journal:
        with session.phase("calibrate"):
            places = _places(model, data, classes, request.seq_len, journal, session)
        with session.phase("solve"):
            probes = _probes(request, places, len(classes), model.view.dtype, session)
        found = _found(request, model, data, classes, places, probes)
        kept = found["chosen"]["layers"]
        cut = model.with_view(model.view.fork())
        if gone := tuple(range(kept, depth)):
            DropLayers(layers=gone).apply(cut.view, {})
        head = probes[kept - 1].weight
        found["params"] = {"dense": count(model.view).params, "pruned": _params(cut, head)}
        with atomic_folder(request.out, overwrite=request.overwrite) as folder:
            _write(folder, cut, head, found, request.out.name, session)
    return found


def _write(folder: Path, cut: Model, head: torch.Tensor, found: dict[str, Any], name: str, session: Session) -> None:
    """Write and verify the classifier, and complete what was found by it."""
    with session.phase("save"):
        save_classifier(cut, head, found["classes"], folder, session.progress)
    with session.phase("verify"):
        found["max_logit_error"] = verify_classifier(cut, head, folder, progress=session.progress)
    found |= {"cost": compose.of_cost(session), "warnings": session.progress.warnings}
    notes = folder / "sned"
    notes.mkdir()
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    (notes / "classifier.json").write_text(text + "\n", encoding="utf-8")
    (notes / "report.html").write_text(classifier.render(found), encoding="utf-8")
    inherited = card.inherited(card.base_metadata(cut.folder))
    (folder / "README.md").write_text(classifier.card(found, name, inherited), encoding="utf-8")
    session.progress.write(notes / "log.jsonl")


def _read(request: ClassifyRequest, session: Session) -> tuple[dict[str, Labelled], list[str]]:
    """Return the texts to train on, to choose by, and to judge by if there are some; and the classes."""

    def read(path: str) -> Labelled:
        return read_labelled(path, request.text, request.label)

    train = read(request.data)
    classes = require_classes(train)
    if request.held_out is None:
        train, held_out = split(train, request.held_out_share, request.seed)
    else:
        held_out = read(request.held_out)
    data = {"train": train, "held_out": held_out}
    if request.test is not None:
        data["test"] = read(request.test)
    names = list(data)
    for place, name in enumerate(names[1:], 1):
        require_known(data[name], classes, train.source)
        for earlier in names[:place]:
            seen = set(data[earlier].texts)
            if shared := sum(text in seen for text in data[name].texts):
                said = f"{shared} of {len(data[name])} {classifier.SETS[name]} are {classifier.SETS[earlier]}, too"
                session.progress.warn(said)
    return data, classes


def _places(
    model: Model,
    data: dict[str, Labelled],
    classes: Sequence[str],
    seq_len: int,
    journal: Journal,
    session: Session,
) -> dict[str, Place]:
    """Run all texts through the model."""
    limit = getattr(model.view.model.config, "max_position_embeddings", None) or seq_len
    places: dict[str, Place] = {}
    for name, part in data.items():
        ids = _encode(model, part, min(seq_len, limit), session)
        label = f"read {classifier.SETS[name]}"
        states = last_states(model.view, ids, journal, label=label, progress=session.progress, cost=session.cost)
        places[name] = states, torch.tensor([classes.index(label) for label in part.labels])
    return places


def _encode(model: Model, part: Labelled, limit: int, session: Session) -> list[list[int]]:
    tokenizer: Any = model.tokenizer
    ids = [tokenizer(text).input_ids for text in part.texts]
    if too_long := [i for i, own in enumerate(ids) if len(own) > limit]:
        session.progress.warn(f"{len(too_long)} of {len(ids)} texts of {part.source} were cut at {limit} tokens")
    for i in too_long:
        ids[i] = tokenizer(part.texts[i], truncation=True, max_length=limit).input_ids
    return ids


def _probes(
    request: ClassifyRequest, places: dict[str, Place], n_classes: int, dtype: torch.dtype, session: Session
) -> list[Probe]:
    """Return a probe for each depth, its weights as they will be saved."""
    (states, labels), (others, theirs) = places["train"], places["held_out"]
    probes = []
    with session.progress.task("fit probes", len(states)) as advance:
        for here, there in zip(states, others, strict=True):
            if request.probe == "solve":
                probe = solve_probe(here.double(), labels, n_classes)
            else:
                probe = train_probe(here.double(), labels, n_classes, (there.double(), theirs))
            probes.append(Probe(probe.weight.to(dtype), probe.penalty))
            advance(1)
    return probes


def _found(
    request: ClassifyRequest,
    model: Model,
    data: dict[str, Labelled],
    classes: list[str],
    places: dict[str, Place],
    probes: list[Probe],
) -> dict[str, Any]:
    """Choose the depth, and return all there is to report but sizes and costs."""
    held_out = [_accuracy(probe, places["held_out"], i) for i, probe in enumerate(probes)]
    n = len(data["held_out"])
    depths = [
        {"layers": i + 1, "accuracy": share, "standard_error": standard_error(share, n), "penalty": probes[i].penalty}
        for i, share in enumerate(held_out)
    ]
    place = shallowest(held_out, n) if request.layers is None else request.layers - 1
    known = {"chosen": place, "best": held_out.index(max(held_out)), "whole": len(probes) - 1}
    rows = {name: dict(depths[i]) for name, i in known.items()}
    if "test" in places:
        for name, i in known.items():
            share = _accuracy(probes[i], places["test"], i)
            rows[name]["test"] = {"accuracy": share, "standard_error": standard_error(share, len(data["test"]))}
    return {
        "schema": SCHEMA,
        "sned": __version__,
        "command": request.command,
        "model": {"source": model.source, "family": model.view.fingerprint.model_type, "layers": len(probes)},
        "seed": request.seed,
        "probe": request.probe,
        "asked": request.layers is not None,
        "classes": classes,
        "data": {name: {"source": part.source, "texts": len(part)} for name, part in data.items()},
        "commonest": {name: _commonest(part) for name, part in data.items() if name != "train"},
        "depths": depths,
        **rows,
    }


def _accuracy(probe: Probe, place: Place, depth: int) -> float:
    states, labels = place
    return accuracy(probe.weight.double(), states[depth].double(), labels)


def _commonest(part: Labelled) -> float:
    """Return the accuracy of always saying the class that most texts have."""
    return max(part.labels.count(name) for name in part.classes) / len(part)


def _params(cut: Model, probe: torch.Tensor) -> int:
    """Return the parameters of the classifier: those of the model without an output head of its own, and the probe."""
    whole = count(cut.view).params
    head: Any = cut.view.model.get_output_embeddings()
    embeddings: Any = cut.view.model.get_input_embeddings()
    own = 0 if head.weight is embeddings.weight else sum(p.numel() for p in head.parameters())
    return whole - own + probe.numel()

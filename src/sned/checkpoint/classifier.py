"""A model with a classification head for its output head, as the stock class for that loads it.

May import `models` and its neighbours in `checkpoint`.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from sned.checkpoint.native import propose
from sned.checkpoint.save import tensors_of, write_checkpoint
from sned.checkpoint.verify import FP32_PARAMS, TOLERANCE, run_bare, run_in
from sned.errors import UnsupportedModelError, VerificationError
from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PretrainedConfig

    from sned.checkpoint.model import Model
    from sned.models.view import View

HEAD = "score.weight"
_LENGTHS = (24, 9)


def require_classifiable(view: View) -> tuple[Any, PretrainedConfig]:
    """Return the class of transformers that classifies with such a model, and the model's plain config.

    Raises:
        UnsupportedModelError: there is no such class for its family, or none that holds these layers.
    """
    proposal = propose(view)
    if not proposal.stock:
        raise UnsupportedModelError(
            "layers of the model are not alike, and the classes that classify are made of equal ones.",
            hint="take the dense model, or one that was pruned by whole layers",
        )
    return _class_for(view.model.config), proposal.config


def _class_for(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    try:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    except KeyError:
        raise UnsupportedModelError(
            f"transformers has no class that classifies texts with a {config.model_type!r} model.",
            hint="take a model of another family, such as llama, qwen3 or gemma2",
        ) from None


def save_classifier(
    model: Model, head: torch.Tensor, classes: Sequence[str], folder: Path, progress: Progress = SILENT
) -> None:
    """Write a model as a stock classifier into an existing folder; its output head stays behind.

    Args:
        model: What reads the texts.
        head: `[classes, hidden]`, applied to what the output head would receive at the last token of a text.
        classes: Their names.
        folder: Where to.
        progress: Told of the bytes written.

    Raises:
        CheckpointError: the disk is full or not writable.
        UnsupportedModelError: no stock class holds such a model.
    """
    view = model.view
    build, plain = require_classifiable(view)
    config: Any = plain
    config.architectures = [build.__name__]
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "single_label_classification"
    config.pad_token_id = padding(model)
    lm_head = view.model.get_output_embeddings()
    left_out = {name for name, module in view.model.named_modules() if module is lm_head}
    body = ((name, tensor) for name, tensor in tensors_of(view) if name.rpartition(".")[0] not in left_out)
    write_checkpoint(model, config, chain(body, [(HEAD, head.to(view.dtype))]), view, folder, progress)


def padding(model: Model) -> int:
    """Return the token that fills up the shorter ones of several texts: the tokenizer's, else one that ends texts."""
    known = [model.tokenizer.pad_token_id, model.view.model.config.pad_token_id, model.tokenizer.eos_token_id]
    return next((token for token in known if isinstance(token, int) and token >= 0), 0)


def verify_classifier(
    model: Model, head: torch.Tensor, folder: Path, *, seed: int = 0, progress: Progress = SILENT
) -> float:
    """Reload a classifier in a fresh process and return its largest error in a logit, relative to the largest logit.

    Raises:
        VerificationError: it does not load, or its logits, of padded texts or of single ones, are not as planned.
    """
    view = model.view
    dtype = torch.float32 if view.geometry.n_params <= FP32_PARAMS else view.dtype
    generator, pad = torch.Generator().manual_seed(seed), padding(model)
    ids = torch.randint(view.geometry.vocab, (len(_LENGTHS), max(_LENGTHS)), generator=generator)
    ids = torch.where(ids == pad, (ids + 1) % view.geometry.vocab, ids)
    for row, length in zip(ids, _LENGTHS, strict=True):
        row[length:] = pad
    with progress.task("verify", 2) as advance:
        states = run_in(view, ids, dtype, head=False)
        last = torch.stack([row[length - 1] for row, length in zip(states, _LENGTHS, strict=True)])
        expected = last @ head.to(view.dtype).float().cpu().T
        advance(1)
        found = run_bare("bare_classify.py", folder, {"ids": ids, "lengths": torch.tensor(_LENGTHS)}, dtype)
        advance(1)
    scale = float(expected.abs().max())
    error = max(float((logits - expected).abs().max()) for logits in found.values()) / scale
    if not error <= TOLERANCE[dtype]:
        raise VerificationError(
            f"the saved classifier does not reproduce the planned one: logits differ by {error:.3g} of the largest "
            f"(allowed {TOLERANCE[dtype]:.3g}). Nothing was kept.",
            hint="this is a bug in sned; please report the model type",
        )
    return error

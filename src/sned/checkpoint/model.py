"""Loading a model: whole, or layer by layer from disk, always as a `View` with where it came from.

May import `models`, `plan` and its neighbours in `checkpoint`.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch

from sned.checkpoint.locate import locate
from sned.checkpoint.quiet import first_line, quiet
from sned.checkpoint.shards import ShardReader
from sned.checkpoint.source import FolderSource
from sned.errors import CheckpointError, ConfigError, NumericalError, UnsupportedModelError
from sned.models import modeling_sned
from sned.models.infer import UNEVEN
from sned.models.view import View
from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_M_MMAP_THRESHOLD = -3
STREAM_ABOVE = 0.6
"""Share of the free memory above which the weights of a model are streamed rather than loaded."""


@dataclass
class Model:
    """A model seen through a view, with its tokenizer and the folder it came from."""

    view: View
    source: str
    folder: Path
    _tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when first asked for.

        Raises:
            CheckpointError: the folder has none that transformers can load.
        """
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self.folder)
        return self._tokenizer

    @property
    def streamed(self) -> bool:
        """Whether layers are read from disk when their turn comes."""
        return self.view.streamed

    def with_view(self, view: View) -> Model:
        """Return the same model seen through another view."""
        return Model(view, self.source, self.folder, self._tokenizer)


def load(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    stream: str = "auto",
    trust_inferred: bool = False,
    progress: Progress = SILENT,
) -> Model:
    """Load a model by Hub id, folder, GGUF file, or `demo`.

    Args:
        source: What to load.
        dtype: `bf16`, `fp16`, `fp32`, or `auto`: the dtype of the checkpoint. It is run and saved in this dtype.
        device: `cpu`, `cuda`, or `auto`: a GPU where there is one.
        stream: `on` reads each layer from disk when its turn comes; `auto` does so where memory is short.
        trust_inferred: Accept a guess at an unknown architecture.
        progress: Told of what goes on.

    Raises:
        CheckpointError: files are missing or corrupt.
        NumericalError: a weight is NaN or infinite.
        UnsupportedModelError: the architecture is unknown or no causal language model.
    """
    folder = locate(source, progress=progress)
    reader = ShardReader(folder)
    config = _config(folder)
    kind = resolve_dtype(dtype, reader)
    place = resolve_device(device)
    build = _model_class(config, folder)
    if _wants_stream(stream, reader, kind):
        model, layers = _build_streamed(build, config, reader, kind, place)
        view = View(model, source=layers, trust_inferred=trust_inferred)
    else:
        model = _load_whole(build, config, folder, kind, place, progress)
        view = View(model, trust_inferred=trust_inferred)
    return Model(view, source, folder)


def resolve_dtype(name: str, reader: ShardReader) -> torch.dtype:
    """Return the dtype to run in; `auto` is the one that most bytes of the checkpoint have.

    Raises:
        ConfigError: the name is not a dtype.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ConfigError(f"dtype {name!r} is unknown", hint=f"use auto, {', '.join(DTYPES)}")
    weight: dict[torch.dtype, int] = {}
    for tensor in reader.names:
        kind = reader.dtype(tensor)
        weight[kind] = weight.get(kind, 0) + reader.nbytes(tensor)
    main = max(weight, key=lambda kind: weight[kind])
    if main not in DTYPES.values():
        raise UnsupportedModelError(
            f"{reader.folder} stores its weights as {main}, a quantised or unusual form.",
            hint="prune the original checkpoint, or say --dtype bf16 if the weights are plain numbers",
        )
    return main


def resolve_device(name: str) -> torch.device:
    """Return the device to run on.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available", hint="use --device cpu")
    return torch.device(name)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        with quiet():
            # unless told, it asks on the terminal whether to run a folder's code, and waits
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{folder} has no tokenizer that can be loaded: {first_line(error)}",
            hint="copy tokenizer.json and tokenizer_config.json there, or calibrate on tokens:PATH",
        ) from error


def _wants_stream(stream: str, reader: ShardReader, dtype: torch.dtype) -> bool:
    if stream != "auto":
        return stream == "on"
    stored = {reader.dtype(name).itemsize for name in reader.names}
    needed = reader.total_bytes * dtype.itemsize // max(stored)
    return needed > STREAM_ABOVE * psutil.virtual_memory().available


def _config(folder: Path) -> PretrainedConfig:
    """Read config.json; one that sned wrote for uneven layers needs no remote code."""
    import json

    from transformers import AutoConfig

    document = json.loads((folder / "config.json").read_text())
    kind = str(document.get("model_type", ""))
    try:
        with quiet():
            if kind.startswith(UNEVEN):
                stock = AutoConfig.for_model(kind.removeprefix(UNEVEN))
                name = f"{modeling_sned.PREFIX}{type(stock).__name__}"
                return getattr(modeling_sned, name).from_pretrained(folder)
            return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{folder}/config.json: transformers knows no model type {kind!r}: {first_line(error)}",
            hint="a newer transformers may know it: pip install -U transformers",
        ) from error


def _model_class(config: PretrainedConfig, folder: Path) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.model_type.startswith(UNEVEN):
        name = (config.architectures or [""])[0]
        return getattr(modeling_sned, name)
    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UnsupportedModelError(
            f"{folder} is a {config.model_type!r} model, which is no causal language model in transformers.",
            hint="sned prunes decoder-only language models",
        ) from None
    return found[0] if isinstance(found, list | tuple) else found


def _load_whole(
    build: Any, config: PretrainedConfig, folder: Path, dtype: torch.dtype, device: torch.device, progress: Progress
) -> PreTrainedModel:
    progress.info(f"loading {folder} as {str(dtype).removeprefix('torch.')}")
    try:
        with quiet():
            model, notes = build.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(notes["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of the model, the first being {missing[0]!r}.",
            hint="the download may be incomplete, or config.json may belong to another model",
        )
    for name, param in model.named_parameters():
        if not torch.isfinite(param.sum(dtype=torch.float32)):
            raise NumericalError(f"{folder}: the weight {name!r} holds NaN or infinity", hint="download it again")
    return model.to(device).eval().requires_grad_(False)


def _build_streamed(
    build: Any, config: PretrainedConfig, reader: ShardReader, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, FolderSource]:
    """Return a model whose layers are on meta and all the rest in memory, and the source of the layers."""
    _return_freed_memory()
    with torch.device("meta"), quiet():
        model = build._from_config(config, dtype=dtype).eval().requires_grad_(False)
    _restore_buffers(model, device)  # first: initialising a module would overwrite weights that are there
    source = FolderSource(reader, model, dtype, device)
    layers_prefix = f"{source.layers_path}."
    for name in [n for n, _ in model.named_parameters() if not n.startswith(layers_prefix)]:
        owner, _, leaf = name.rpartition(".")
        loaded = torch.nn.Parameter(source.tensor(name), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, loaded)
    model.tie_weights()
    return model, source


def _return_freed_memory() -> None:
    """Make the C library give the memory of a dropped layer back to the system at once.

    By default glibc learns from the first large tensor that is freed to keep such blocks for itself, where they
    fragment: measured on 30 layers, resident memory grew by a third of each layer that had gone by.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _restore_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Give buffers that no checkpoint holds, such as rotary frequencies, the values they are built with."""
    for module in model.modules():
        hollow = [name for name, buffer in module.named_buffers(recurse=False) if buffer.device.type == "meta"]
        for name in hollow:
            buffer = module.get_buffer(name)
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, torch.empty_like(buffer, device=device), persistent=persistent)
        if hollow:
            model._init_weights(module)

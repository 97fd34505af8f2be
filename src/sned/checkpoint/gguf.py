"""GGUF files as safetensors folders, because all else reads tensors by their Hugging Face names.

May import errors, progress and `checkpoint.folders`. transformers does the conversion; this module says what
is wrong with a file in the user's terms, checks that nothing of it was lost, and mends what transformers
leaves out.
"""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import write_error
from sned.checkpoint.quiet import quiet
from sned.errors import CheckpointError, MissingExtraError, UnsupportedModelError
from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# They stretch the rotary frequencies. In a Hugging Face model that is a matter of the config, not a tensor.
_ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_INSTEAD = "Use the model's safetensors repository instead."


def convert(path: Path, into: Path, progress: Progress = SILENT) -> None:
    """Write the model and tokenizer of a GGUF file into the folder `into`, dequantised.

    Quantised files become bfloat16; files of plain floats keep their type. The folder loads with a plain
    `from_pretrained`, with the logits of the GGUF file as transformers loads it.

    Raises:
        CheckpointError: the file is missing, broken or truncated, or `into` could not be written.
        UnsupportedModelError: transformers cannot read its architecture, tokenizer or quantisation.
        MissingExtraError: a package that reads GGUF files is not installed.
    """
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "gguf", purpose=f"reading the GGUF file {path}")
    _check_magic(path)
    with tempfile.TemporaryDirectory() as alone, quiet(), _remembering():
        # Alone, because transformers also reads what lies beside a GGUF file: another model's tokenizer, say.
        link = Path(alone) / "model.gguf"
        link.symlink_to(path.resolve())
        reader = _open(path, link)
        _check_supported(path, reader)
        with progress.task(f"converting {path.name}", len(reader.tensors)) as advance, _ticking(advance):
            model, tokenizer = _load(path, link, reader)
        try:
            model.save_pretrained(into)
            tokenizer.save_pretrained(into)
            for shard in into.glob("*.safetensors"):  # the library makes them private, whatever the umask
                shutil.copymode(into / "config.json", shard)
        except Exception as error:
            raise write_error(into, error, needed=model.get_memory_footprint()) from error


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error}.") from error
    if magic != b"GGUF":
        raise CheckpointError(
            f"{path} is not a GGUF file: it starts with {magic!r}.",
            hint="Fetch the file again; a page or a Git LFS pointer may have been saved in its place.",
        )


def _open(path: Path, link: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(str(link))
    except Exception as error:
        if "GGMLQuantizationType" in str(error):
            raise _unknown_type(path, str(error)) from error
        raise CheckpointError(
            f"{path} is not a whole GGUF file ({path.stat().st_size} bytes): {error}.",
            hint="It is truncated or corrupt; fetch it again.",
        ) from error


def _check_supported(path: Path, reader: Any) -> None:
    import gguf
    import numpy as np

    if (_field(reader, "split.count") or 1) > 1:
        raise UnsupportedModelError(
            f"{path} is one of {_field(reader, 'split.count')} parts of a model.",
            hint="Join the parts first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )
    if not isinstance(_field(reader, "general.architecture"), str) or not reader.tensors:
        raise CheckpointError(f"{path} names no architecture or holds no tensors, so it is not a model.")
    if _field(reader, "tokenizer.ggml.model") in (None, "none"):
        raise CheckpointError(f"{path} holds no tokenizer.", hint=_INSTEAD)
    for kind in {tensor.tensor_type for tensor in reader.tensors}:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise _unknown_type(path, kind.name) from error


def _unknown_type(path: Path, what: str) -> UnsupportedModelError:
    import gguf
    import numpy as np

    known = []
    for kind, (_, width) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, width), np.uint8), kind)
        except NotImplementedError:
            continue
        known.append(kind.name)
    return UnsupportedModelError(
        f"{path} holds tensors of a type that cannot be dequantised: {what}.",
        hint=f"Take a file in one of: {', '.join(known)}. Or upgrade the package: pip install -U gguf",
    )


def _load(path: Path, link: Path, reader: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    types = {tensor.tensor_type.name for tensor in reader.tensors}
    plain = torch.float16 if "F16" in types else torch.float32  # a half file keeps its norms in F32
    dtype = plain if types <= {"F32", "F16"} else torch.bfloat16
    source: dict[str, Any] = {"pretrained_model_name_or_path": link.parent, "gguf_file": link.name}
    try:
        config = AutoConfig.from_pretrained(**source)
        _mend_config(path, config, reader)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            config=config,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (MemoryError, UnsupportedModelError):
        raise
    except Exception as error:
        raise _not_loadable(path, reader, str(error) or repr(error)) from error
    model, info = loaded
    _check_complete(path, reader, model, info["missing_keys"])
    return model, tokenizer


def _not_loadable(path: Path, reader: Any, why: str) -> UnsupportedModelError:
    from transformers import modeling_gguf_pytorch_utils as loader

    known = sorted(set(loader.GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
    architecture = _field(reader, "general.architecture")
    return UnsupportedModelError(
        f"transformers cannot read {path}, a GGUF of architecture {architecture!r}: {why.splitlines()[0]}",
        hint=f"It reads: {', '.join(known)}. {_INSTEAD}",
    )


def _check_complete(path: Path, reader: Any, model: Any, missing: Iterable[str]) -> None:
    """Refuse a model that lacks weights or leaves some unused: transformers says neither aloud."""
    if missing := sorted(missing):
        raise _not_loadable(path, reader, f"it has no tensor for {missing[0]} ({len(missing)} are missing)")
    ignored = {*_ROPE_TABLES, *(("output.weight",) if model.config.tie_word_embeddings else ())}
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in ignored)
    loaded = sum({value.data_ptr(): value.numel() for value in model.state_dict().values()}.values())
    if stored != loaded:
        why = f"it holds {stored} values, but as {model.config.model_type} a model has room for {loaded}"
        raise _not_loadable(path, reader, why)


def _mend_config(path: Path, config: Any, reader: Any) -> None:
    """Restore the rotary scaling, which transformers ignores, and drop traces of the file format."""
    for name, value in list(vars(config).items()):
        if (short := _shortest(value)) != value:
            setattr(config, name, short)
    if hasattr(config, "_model_name_or_path"):  # the file's title, under a key that nothing reads
        del config._model_name_or_path
    tables = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name in _ROPE_TABLES}
    kind = _field(reader, f"{_field(reader, 'general.architecture')}.rope.scaling.type") or "none"
    rope = getattr(config, "rope_parameters", None) or {}
    if (not tables and kind == "none") or rope.get("rope_type", "default") != "default":
        return
    if kind != "none" or list(tables) != ["rope_freqs.weight"] or not _is_llama3(config, tables.popitem()[1]):
        raise UnsupportedModelError(
            f"{path} stretches its rotary positions ({kind if kind != 'none' else 'by a table'}) "
            "in a way that transformers would silently ignore.",
            hint=_INSTEAD,
        )


def _is_llama3(config: Any, table: Any) -> bool:
    """Set Llama 3's rotary scaling if it explains the table, which llama.cpp computes from it."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = dict(config.rope_parameters)
    scaling = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    sizes = {"factor": float(table.max()), "original_max_position_embeddings": 8192}
    config.rope_parameters = plain | scaling | sizes
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = 2 * len(scaled)
    unscaled = plain["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    ratio = torch.from_numpy(table.copy()).flatten()
    return ratio.shape == scaled.shape and torch.allclose(unscaled / scaled, ratio, rtol=1e-3)


def _shortest(value: Any) -> Any:
    """Write what was stored in 32 bits as a person would: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    if isinstance(value, dict):
        return {key: _shortest(inner) for key, inner in value.items()}
    if isinstance(value, float) and math.isfinite(value) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


@contextmanager
def _remembering() -> Iterator[None]:
    """Do once what transformers does again and again: parse the file, and list the tensor names it may hold.

    A model of 30 layers takes a third of the time: the names, for one, are listed for each of its modules.
    """
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        """Reads through a plain array: a memmap makes each of a vocabulary's many small slices slow."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, value: Any) -> None:
            self._data = np.asarray(value)

    reader, names = functools.cache(PlainReader), functools.cache(gguf.get_tensor_name_map)
    with _patched(gguf, "GGUFReader", reader), _patched(gguf, "get_tensor_name_map", names):
        yield


@contextmanager
def _ticking(advance: Callable[[int], None]) -> Iterator[None]:
    """Let the converter's own progress bar, which has no switch, move ours."""
    from transformers import modeling_gguf_pytorch_utils as loader

    def tick(items: Iterable[Any], **_options: Any) -> Iterator[Any]:
        for item in items:
            yield item
            advance(1)

    with _patched(loader, "tqdm", tick):
        yield


@contextmanager
def _patched(module: Any, name: str, value: Any) -> Iterator[None]:
    if not hasattr(module, name):  # of another version; the conversion is right without, only slower or mute
        yield
        return
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)

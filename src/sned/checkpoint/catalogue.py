"""Where every tensor of a safetensors folder lies, and what is wrong with a folder where that cannot be said.

May import errors and `checkpoint.folders`. Headers are parsed here rather than by the safetensors library
because the messages must name the file and its sizes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from sned.checkpoint.folders import format_bytes
from sned.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_MAX_HEADER = 100_000_000  # bytes; the limit of the format itself
_FETCH_AGAIN = "Fetch or copy the file again."
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor on disk; `offset` counts bytes from the start of `file`."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def catalogue(folder: Path) -> dict[str, Entry]:
    """Return where each tensor of a model folder lies, having checked its config, index and shard headers.

    Raises:
        CheckpointError: something is missing, broken or truncated, or the weights are pickles.
    """
    if not folder.is_dir():
        what = "is a file, not a model folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {what}.", hint="Check the path; a model is a folder with a config.json.")
    if not (folder / "config.json").is_file():
        raise _no_config(folder)
    _read_json(folder / "config.json")
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _follow_index(folder)
    raise _no_weights(folder)


def _follow_index(folder: Path) -> dict[str, Entry]:
    index = folder / INDEX
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, so it does not say where the tensors are.")
    shards: dict[str, dict[str, Entry]] = {}
    entries: dict[str, Entry] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{index} gives {name!r} as the file of {tensor}; that is no file name.")
        if name not in shards:
            shards[name] = read_header(_shard_path(index, name))
        if tensor not in shards[name]:
            raise CheckpointError(
                f"{index} places the tensor {tensor} in {name}, but that file does not hold it.",
                hint="The index and the shards are of different versions; fetch them together.",
            )
        entries[tensor] = shards[name][tensor]
    return entries


def _shard_path(index: Path, name: str) -> Path:
    if leads_outside(name):
        raise CheckpointError(
            f"{index} names a file outside its folder: {name!r}.",
            hint="Don't use this checkpoint unless you know why; shards belong beside their index.",
        )
    path = index.parent / name
    if not path.is_file():
        raise CheckpointError(
            f"{index} names {name!r}, but there is no such file in {index.parent}.", hint=_FETCH_AGAIN
        )
    return path


def leads_outside(name: str) -> bool:
    """Tell whether a relative name leaves its folder.

    Its parts are judged, not where it leads: the shards of a Hub cache are links that do lead outside.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return posix.is_absolute() or bool(windows.drive or windows.root) or ".." in windows.parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.", hint=_FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__} where an object is expected.")
    return value


def read_header(path: Path) -> dict[str, Entry]:
    """Return where each tensor of a safetensors file lies, having checked that they fill it exactly.

    Raises:
        CheckpointError: the file cannot be read, or is not whole.
    """
    return parse_header(path, *header_text(path))


def header_text(path: Path) -> tuple[str, int]:
    """Return the header of a safetensors file as it stands there, and the bytes of the whole file.

    Raises:
        CheckpointError: the file cannot be read, or its header is cut short or no text.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > _MAX_HEADER or 8 + length > size:
                raise _broken(path, f"its header of {length} bytes does not fit into its {size} bytes")
            return file.read(length).decode(), size
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise _broken(path, f"its header is not JSON ({error})") from error


def parse_header(path: Path, text: str, size: int) -> dict[str, Entry]:
    """Return where each tensor of a safetensors file lies, from its header.

    Args:
        path: Of the file, which is not opened.
        text: The header.
        size: Bytes of the whole file, which the tensors must fill exactly.

    Raises:
        CheckpointError: they don't, or the header is malformed.
    """
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    end = start = 8 + len(text.encode())
    entries = {name: _parse_entry(path, name, value, start) for name, value in header.items()}
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != end:
            raise _broken(path, f"its tensors overlap or leave a gap at byte {end}")
        end += entry.nbytes
    if end != size:
        what = "is truncated" if size < end else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{path} {what}: its header describes {end} bytes ({format_bytes(end)}), the file has {size}.",
            hint=_FETCH_AGAIN,
        )
    return entries


def _parse_entry(path: Path, name: str, value: Any, start: int) -> Entry:
    try:
        first, last = value["data_offsets"]
        shape, kind = tuple(value["shape"]), value["dtype"]
        sane = all(isinstance(number, int) and number >= 0 for number in (first, last, *shape))
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"the header's entry of {name} is malformed") from error
    if kind not in DTYPES:
        raise CheckpointError(
            f"{path} stores {name} as {kind}, which sned does not read.",
            hint=f"Save the model in one of: {', '.join(DTYPES)}.",
        )
    dtype = DTYPES[kind]
    if not sane or last - first != math.prod(shape) * dtype.itemsize:
        raise _broken(path, f"the header's entry of {name} does not add up")
    return Entry(path, start + first, last - first, shape, dtype)


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole safetensors file: {why}.", hint=_FETCH_AGAIN)


def _no_config(folder: Path) -> CheckpointError:
    if (folder / "adapter_config.json").is_file():
        return CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), not a whole model: it has no config.json.",
            hint="Merge it into its base model first: PeftModel.merge_and_unload(), then save_pretrained.",
        )
    hint = "A Hugging Face model folder has config.json, *.safetensors and tokenizer files."
    if ggufs := sorted(folder.glob("*.gguf")):
        hint = f"It holds a GGUF file; give that instead of the folder: {ggufs[0]}"
    return CheckpointError(f"{folder} has no config.json, so it is not a model folder.", hint=hint)


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{folder} holds its weights only as pickles ({pickles[0]}), which can run code on loading.",
            hint="Convert it on a machine you trust: AutoModelForCausalLM.from_pretrained(FOLDER, "
            "use_safetensors=False).save_pretrained(NEW_FOLDER), and save its tokenizer there too.",
        )
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    beside = f" It has {', '.join(found[:3])}, but transformers loads no such names." if found else ""
    return CheckpointError(
        f"{folder} has no weights: neither {SINGLE} nor {INDEX}.{beside}",
        hint="Fetch the whole model; a download may have been cut short.",
    )

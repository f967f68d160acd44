"""Identifies the numbers of a model by digests and commits, without loading weights or torch.

A hub model is identified by its name and commit, a local one by the digests of its files, wherever it lies. The adapter
and the decisive keys of the section, such as dtype and backend, are part of it. Equal fingerprints mean equal files.
"""

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping
from math import prod
from os import stat_result
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.config import TorchModel
from pipeline.errors import ModelError, is_foreign
from pipeline.shown import listed, shown

_Parts = Mapping[str, tuple[str, ...]]
"""Patterns of file names, by the part of a model that they belong to."""

_MODEL_PARTS: Final[_Parts] = {
    "weights": ("*.safetensors", "*.safetensors.index.json"),
    "config": ("config.json", "*.py"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                  "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template*"),
}  # fmt: skip
_MODEL_FILES: Final = ("config.json", "*.safetensors")
_ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TO_SAFETENSORS: Final = "Convert it: load it with transformers and call save_pretrained."
_AGAIN: Final = "Save or download it again."
_HUB_TIMEOUT_S: Final = 10.0
# A file that changed this lately may change again without a new time, as file systems count in steps.
_SETTLED_S: Final = 3.0

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=TorchModel)
_State = tuple[int, ...]
_digests: dict[Path, tuple[_State, str]] = {}  # of files that this process has read; threads may share it


def model_fingerprint(model: TorchModel) -> dict[str, Any]:
    """JSON-ready facts that change whenever a number of this model can change.

    Reads every byte of a local model, except in a Hugging Face cache, whose file names are digests already. A process
    reads a file once for as long as it does not change.

    Raises a ModelError if there is no such model, it has no safetensors, or it is neither on the hub nor cached.
    """
    found = model.fingerprint() | _identity(model.model, model.revision, _MODEL_FILES, _MODEL_PARTS)
    if model.adapter is not None:
        parts: dict[str, tuple[str, ...]] = {"weights": _ADAPTER_FILES}
        if is_local(model.adapter) and any(any(Path(model.adapter).glob(name)) for name in _MODEL_PARTS["tokenizer"]):
            parts["tokenizer"] = _MODEL_PARTS["tokenizer"]
        found["adapter"] = _identity(model.adapter, model.adapter_revision, _ADAPTER_FILES, parts)
    return found


def tokenizer_fingerprint(name: str, revision: str) -> dict[str, Any]:
    """JSON-ready facts that change whenever the tokenizer of a model can: as for a model, but no weights are needed.

    Raises a ModelError if there is no such model.
    """
    if not is_local(name):
        return {"name": name, "revision": _hub_commit(name, revision, weights=False)}
    if not Path(name).is_dir():
        raise ModelError(f"Model directory {name} does not exist. Give a directory or a hub id such as org/name.")
    return _digests_of(Path(name), {"tokenizer": _MODEL_PARTS["tokenizer"]})


def pinned(model: M, fingerprint: Mapping[str, Any]) -> M:
    """The model as workers read it: a hub id at the commit that was fingerprinted, a local directory as a full path.

    So a branch that moves during the run has no effect, and neither has a worker's working directory.
    """

    def full_path(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).is_dir() else name

    return model.model_copy(
        update={
            "model": full_path(model.model),
            "adapter": model.adapter and full_path(model.adapter),
            "revision": fingerprint.get("revision", model.revision),
            "adapter_revision": fingerprint.get("adapter", {}).get("revision", model.adapter_revision),
        }
    )


def check_files(model: TorchModel) -> None:
    """Check the files of a model and its adapter on this machine, as far as possible without reading them.

    Raises a ModelError if the directory is missing or holds no model, or if files are missing or damaged.
    """
    _check_files(model.model, model.revision, *_MODEL_FILES)
    if model.adapter is not None:
        _check_files(model.adapter, model.adapter_revision, *_ADAPTER_FILES)


def num_parameters(model: TorchModel) -> int | None:
    """Numbers in the model's safetensors files, adapters left out; None if the files are not on this machine."""
    directory = _directory_of(model.model, model.revision)
    return None if directory is None else sum(_numbers_by_dtype(directory).values()) or None


def num_bytes(model: TorchModel) -> int | None:
    """Bytes of the weights of a model and its adapter once loaded, by the headers of their files, here or on the hub.

    Floating-point numbers of 16 bits and more are loaded in the dtype of the section; others stay as they are stored.
    None if the headers cannot be read.
    """
    places = [(model.model, model.revision)]
    places += [] if model.adapter is None else [(model.adapter, model.adapter_revision)]
    total = 0
    for name, revision in places:
        directory = _directory_of(name, revision)
        numbers = _numbers_on_hub(name, revision) if directory is None else _numbers_by_dtype(directory)
        total += sum(count * _size_of(dtype, model.dtype) for dtype, count in numbers.items())
        if not numbers:
            return None
    return total


def _directory_of(name: str, revision: str) -> Path | None:
    """The folder with the safetensors of a model, if it is on this machine; a download that was cut short is not."""
    if is_local(name):
        return Path(name)
    directory = _cached_snapshot(name, revision)
    if directory is None or not any(directory.glob("*.safetensors")):
        return None
    try:
        _check_index(directory)
    except ModelError:
        return None
    return directory


def _numbers_by_dtype(directory: Path) -> Counter[str]:
    """How many numbers of each dtype the safetensors of a folder hold, as their headers say."""
    from safetensors import safe_open

    found: Counter[str] = Counter()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                tensor = file.get_slice(name)
                found[tensor.get_dtype()] += prod(tensor.get_shape())
    return found


def _numbers_on_hub(name: str, revision: str) -> Mapping[str, int]:
    """The same of a model on the hub, by the headers alone; nothing if they cannot be read."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().get_safetensors_metadata(name, revision=revision).parameter_count
    except Exception as error:  # noqa: BLE001 - the client's error classes vary
        _log.info("the size of %s is not known: %s", name, type(error).__name__)
        return {}
    return {str(dtype): count for dtype, count in found.items()}


def _size_of(stored: str, loaded: str) -> int:
    bits = int(re.sub(r"\D.*", "", stored.lstrip("BFIU")) or 8)  # F16, BF16, I64, F8_E4M3, BOOL
    is_float = stored.startswith(("F", "BF")) and bits >= 16
    return (4 if loaded == "float32" else 2) if is_float else -(-bits // 8)


def is_local(name: str) -> bool:
    """Whether a model's name means a directory rather than a hub id. Raises a ModelError if it is a URL."""
    if "://" in name:
        raise ModelError(f"Model {name} is a URL; wanted a hub id or a local directory. Download it first.")
    return Path(name).exists() or not _HUB_NAME.fullmatch(name)


def _identity(name: str, revision: str, needed: tuple[str, str], parts: _Parts) -> dict[str, Any]:
    """Name and commit of a hub model, or a digest for each part of a local one."""
    if not is_local(name):
        return {"name": name, "revision": _hub_commit(name, revision)}
    _check_directory(Path(name), *needed)
    return _digests_of(Path(name), parts)


def _digests_of(directory: Path, parts: _Parts) -> dict[str, Any]:
    found = {}
    for part, patterns in parts.items():
        files = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
        total = hashlib.sha256()
        for path in sorted(files):
            total.update(f"{path.name}\0{_digest_of(path)}\n".encode())
        found[part] = total.hexdigest()
    return found


def _check_files(name: str, revision: str, config: str, weights: str) -> None:
    directory: Path | None = Path(name)
    if is_local(name):
        _check_directory(Path(name), config, weights)
        _check_index(Path(name))
    else:
        directory = _cached_snapshot(name, revision)
    for path in sorted(directory.glob("*.safetensors")) if directory else ():
        _check_weights(path)


def _check_index(directory: Path) -> None:
    """Check that every file with a part of the weights is there, if they are in several files."""
    path = directory / "model.safetensors.index.json"
    if not path.exists() or (directory / "model.safetensors").exists():
        return
    try:
        named = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        missing = [name for name in named if not (directory / name).exists()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ModelError(f"{path} is damaged ({type(error).__name__}). {_AGAIN}") from None
    if missing:
        raise ModelError(f"{directory} lacks {listed(missing)}, which {path.name} names. {_AGAIN}")


def _check_weights(path: Path) -> None:
    """Check by its header that a safetensors file is whole."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise ModelError(f"{path} is damaged: {shown(error, 300)}. {_AGAIN}") from None


def _check_directory(directory: Path, config: str, weights: str) -> None:
    if not directory.is_dir():
        raise ModelError(f"Model directory {directory} does not exist. Give a directory or a hub id such as org/name.")
    if not (directory / config).exists():
        raise ModelError(f"{directory} is no model: it has no {config}. Give the directory that holds it.")
    if not any(directory.glob(weights)):
        held = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        raise ModelError(f"{directory} holds no safetensors (it holds {held or 'no weights'}). {_TO_SAFETENSORS}")


def _digest_of(path: Path) -> str:
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs":
        return target.name  # the hub's cache names its files by their digests
    before = _state_of(target.stat())
    known = _digests.get(target)
    if known is not None and known[0] == before:
        return known[1]
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    after = target.stat()
    if _state_of(after) == before and abs(time.time() - after.st_mtime) > _SETTLED_S:
        _digests[target] = (before, digest)
    return digest


def _state_of(found: stat_result) -> _State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hub_commit(name: str, revision: str, *, weights: bool = True) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    snapshot = _cached_snapshot(name, revision)
    cached = None if snapshot is None else snapshot.name
    if cached is not None and _COMMIT.fullmatch(revision):
        return cached
    try:
        info = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
    except GatedRepoError:
        raise ModelError(f"Model {name} is gated on the hub. Accept its terms there and set HF_TOKEN.") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelError(
            f"The hub has no model {name} at revision {revision}, or it is private. "
            "Check name and revision, set HF_TOKEN for a private one, or give a local directory."
        ) from None
    except Exception as error:  # noqa: BLE001 - the client's error classes vary; each means the hub was not reached
        if cached is not None:
            return cached
        raise ModelError(
            f"Model {name} is not in the local cache and the hub cannot be reached ({type(error).__name__}). "
            "Download it where there is a network, or give a local directory."
        ) from None
    if weights and not any(sibling.rfilename.endswith(".safetensors") for sibling in info.siblings or ()):
        raise ModelError(f"Model {name} has no safetensors on the hub. {_TO_SAFETENSORS}")
    return str(info.sha)


def _cached_snapshot(name: str, revision: str) -> Path | None:
    """Folder of a hub model in the cache. Its name is the commit."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None

"""What identifies a model's numbers: digests and commits, found without loading weights or torch.

A hub model is its name and commit; a local one the digests of its files, wherever it lies. To these come the decisive
keys of its section, such as dtype and backend, and the adapter. Equal fingerprints mean equal files.
"""

import hashlib
import json
import re
import time
from os import stat_result
from pathlib import Path
from typing import Any, Final, TypeAlias

from pipeline.config import TorchModel
from pipeline.errors import ModelError, is_foreign
from pipeline.shown import listed, shown

_WEIGHTS: Final = ("*.safetensors", "*.safetensors.index.json")
_CONFIG: Final = ("config.json", "*.py")
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template*",
)
_ADAPTER: Final = ("adapter_config.json", "adapter_model.safetensors")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TO_SAFETENSORS: Final = "Convert it: load it with transformers and call save_pretrained."
_AGAIN: Final = "Save or download it again."
_HUB_TIMEOUT_S: Final = 10.0
# A file that changed this lately may change again without a new time, as file systems count in steps.
_SETTLED_S: Final = 3.0

_State: TypeAlias = tuple[int, ...]
_digests: dict[Path, tuple[_State, str]] = {}  # what this process has read; each access is one, so threads may share it


def model_fingerprint(model: TorchModel) -> dict[str, Any]:
    """JSON-ready facts that change whenever a number of this model can change.

    Reads every byte of a local model, except in a Hugging Face cache, whose file names are digests already. A process
    reads a file once for as long as it does not change.

    Raises:
        ModelError: no such model, no safetensors, or the hub cannot be reached and holds no copy here.
    """
    found = model.fingerprint() | _identity(model.model, model.revision)
    if model.adapter is not None:
        found["adapter"] = _adapter_identity(model.adapter, model.adapter_revision)
    return found


def check_files(model: TorchModel) -> None:
    """Check what can be checked of a model's files on this machine without reading them.

    Raises:
        ModelError: the directory is missing, holds no model or no safetensors, or some of them are missing or damaged;
            the same for the adapter.
    """
    _check_name(model.model, model.revision, "config.json", "*.safetensors")
    if model.adapter is not None:
        _check_name(model.adapter, model.adapter_revision, *_ADAPTER)


def is_local(name: str) -> bool:
    """Whether a model's name means a directory rather than a hub id.

    Raises:
        ModelError: it is a URL.
    """
    if "://" in name:
        raise ModelError(f"Model {name} is a URL; wanted a hub id or a local directory. Download it first.")
    return Path(name).exists() or not _HUB_NAME.fullmatch(name)


def _identity(name: str, revision: str) -> dict[str, Any]:
    if not is_local(name):
        return {"name": name, "revision": _hub_commit(name, revision)}
    directory = Path(name)
    _check_directory(directory, "config.json", "*.safetensors")
    parts = {"weights": _WEIGHTS, "config": _CONFIG, "tokenizer": _TOKENIZER}
    return {part: _digest_of_files(directory, patterns) for part, patterns in parts.items()}


def _adapter_identity(name: str, revision: str) -> dict[str, Any]:
    if not is_local(name):
        return {"name": name, "revision": _hub_commit(name, revision)}
    _check_directory(Path(name), *_ADAPTER)
    return {"weights": _digest_of_files(Path(name), _ADAPTER)}


def _check_name(name: str, revision: str, config: str, weights: str) -> None:
    if is_local(name):
        _check_directory(Path(name), config, weights)
        _check_index(Path(name))
        directory: Path | None = Path(name)
    else:
        directory = _cached_snapshot(name, revision)
    for path in sorted(directory.glob("*.safetensors")) if directory else ():
        _check_weights(path)


def _check_index(directory: Path) -> None:
    """Check that every file is there which holds a part of the weights, where they are in several."""
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
    """Check by the header of a file in safetensors that it is whole."""
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


def _digest_of_files(directory: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0{_digest_of(path)}\n".encode())
    return total.hexdigest()


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


def _hub_commit(name: str, revision: str) -> str:
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
    # The client's transport has had several error classes; whichever it is, the hub was not reached.
    except Exception as error:  # noqa: BLE001
        if cached is not None:
            return cached
        raise ModelError(
            f"Model {name} is not in the local cache and the hub cannot be reached ({type(error).__name__}). "
            "Download it where there is a network, or give a local directory."
        ) from None
    if not any(sibling.rfilename.endswith(".safetensors") for sibling in info.siblings or ()):
        raise ModelError(f"Model {name} has no safetensors on the hub. {_TO_SAFETENSORS}")
    return str(info.sha)


def _cached_snapshot(name: str, revision: str) -> Path | None:
    """Folder of a hub model in the cache, whose name is the commit."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None

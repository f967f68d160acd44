"""Datasets of the Hugging Face Hub as files, at one commit.

A path without a commit could be another dataset at the next read, so a place on the hub always names one. Then listings
may be kept, and tasks on other machines need not ask again. The token is that of huggingface_hub (HF_TOKEN, or the file
of `hf auth login`); every process finds its own, and none is ever part of a place.
"""

import logging
import os
import re
from typing import Final
from urllib.parse import unquote

from huggingface_hub import HfApi, HfFileSystem

from pipeline.errors import ConfigError
from pipeline.faults import storage_errors
from pipeline.shown import shown_path

_TIMEOUT_S: Final = 30.0
# Their lines hold the URL of each request, which may be signed.
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)
_URL: Final = re.compile(
    r"""
    hf://datasets/ (?P<repo> [\w.-]+/[\w.-]+ )
    (?: @ (?P<revision> refs/(?:convert|pr)/[^/]+ | [^/]+ ) )?
    (?: / (?P<path> .* ) )?
    """,
    re.VERBOSE | re.DOTALL,
)


class HubFileSystem(HfFileSystem):
    """`HfFileSystem` that names a file's content by the digest that the hub keeps."""

    def ukey(self, path: str) -> str:
        """The SHA-256 of a large file, the git object of another."""
        info = self.info(path)
        return f"sha256:{info['lfs']['sha256']}" if info.get("lfs") else f"git:{info['blob_id']}"

    checksum = ukey


def endpoint() -> str | None:
    """HF_ENDPOINT, if it is set."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def open_dataset(url: str) -> tuple[HubFileSystem, str]:
    """The file system and path of `hf://datasets/ORG/NAME[@REVISION][/PATH]`, at the commit of the revision now.

    Raises:
        ConfigError: another kind of URL.
        StorageError: no such dataset or revision, or none that the token may read.
        TemporaryError: the hub does not answer.
    """
    match = _URL.fullmatch(url.rstrip("/"))
    if match is None:
        raise ConfigError(f"{shown_path(url)}: wanted hf://datasets/ORG/NAME[@REVISION][/PATH].")
    revision = None if match["revision"] is None else unquote(match["revision"])
    with storage_errors(url):
        info = HfApi(endpoint=endpoint()).dataset_info(match["repo"], revision=revision, timeout=_TIMEOUT_S)
    path = f"/{match['path']}" if match["path"] else ""
    root = f"datasets/{match['repo']}@{info.sha}{path}"
    return HubFileSystem(endpoint=endpoint(), skip_instance_cache=True), root

"""`alignpot push` and `output.hub`: a complete subset as a dataset of the Hugging Face Hub, in one commit.

    Parquet files on local disk -> compare with the head of main -> one commit: data/SPLIT-*.parquet and README.md

Nothing is pushed if the head holds files of the same digests (SHA-256, or git objects for small ones) and a card of the
same subset; changes that people made to the card stay then. The commit names the head as its parent: if somebody else
commits meanwhile, the hub refuses it, and the new head is compared. Uploads before a commit show nowhere. So a push may
be killed at any time, or run twice at once, and there is one commit.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError

from pipeline.data.dataset import Dataset
from pipeline.data.files import REPORT_FILE
from pipeline.data.hub import HubFileSystem, endpoint
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.sealed import fingerprint_digest, read_sealed
from pipeline.errors import ConfigError, SourceError, StorageError, TemporaryError
from pipeline.exports.card import MARK, card
from pipeline.faults import storage_errors
from pipeline.scratch import scratch_folder
from pipeline.shown import listed, shown

_KIND: Final = "dataset"
_ROWS_PER_FILE: Final = 100_000
_ROWS_PER_GROUP: Final = 10_000
_OURS: Final = re.compile(r"data/\w+-\d{5}-of-\d{5}\.parquet")
_BESIDE: Final = re.compile(r"\.gitattributes|README\.md|LICEN[SC]E.*", re.IGNORECASE)
_MARKED: Final = re.compile(rf"^{MARK}: '?(\w+)", re.MULTILINE)
_TRIES: Final = 5  # commits of others that may come between
_CHUNKED: Final = {  # a later push then uploads only what differs
    name: True
    for name in ("use_content_defined_chunking",)
    if name in inspect.signature(pq.ParquetWriter.__init__).parameters
}


def check_access(repo: str) -> None:
    """Check the token before any work.

    Raises:
        StorageError: there is none, or the hub does not know it.
        TemporaryError: the hub does not answer.
    """
    if get_token() is None:
        raise StorageError(
            f"{_url(repo)}: no token. Set HF_TOKEN or run `hf auth login`, with a token that may write there."
        )
    with storage_errors(_url(repo)):
        _api().whoami()


def push_subset(subset: Place, repo: str, *, public: bool = False) -> str:
    """Push a subset, unless it is there already; returns the text to print.

    public: for everybody to see, where the dataset does not exist yet; else it is private.

    Raises:
        ConfigError: `repo` is no ORG/NAME.
        SourceError: no complete subset.
        StorageError: the hub refused, or the dataset there was not made by alignpot.
        TemporaryError: the hub does not answer, or others commit all the time.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
        raise ConfigError(f"{shown(repo)} is no dataset of the hub; wanted ORG/NAME.")
    dataset = Dataset.open(subset, SUBSET)
    report = read_sealed(subset / REPORT_FILE)
    if report is None:
        raise SourceError(f"{subset / REPORT_FILE} is missing from a complete subset. Select again to another path.")
    check_access(repo)
    # The rows decide what is pushed, not the formats or files that the subset has them in.
    decisive = {
        name: value for name, value in dataset.manifest.fingerprint.items() if name not in ("formats", "layout")
    }
    mark = fingerprint_digest(decisive)
    api = _api()
    with storage_errors(_url(repo)):
        api.create_repo(repo, repo_type=_KIND, private=not public, exist_ok=True)
    with scratch_folder("push") as folder:
        files = _write(dataset, folder)
        text = card(repo, dataset, report, mark)
        for _ in range(_TRIES):
            with storage_errors(_url(repo)):
                done = _committed(api, repo, files, text, mark)
            if done is not None:
                return "\n".join([
                    f"{done}: {dataset.manifest.num_rows:,} pairs",
                    f"  {_url(repo)}",
                    f'  datasets.load_dataset("{repo}", split="train")',
                ])  # fmt: skip
    raise TemporaryError(f"{_url(repo)}: others commit there all the time. Run the same command again.")


def _committed(api: HfApi, repo: str, files: Mapping[str, Path], text: str, mark: str) -> str | None:
    """Commit what the head of main lacks; says what was done, or None if the head moved meanwhile."""
    head = api.dataset_info(repo).sha
    tree = api.list_repo_tree(repo, recursive=True, revision=head, repo_type=_KIND)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    old_mark = _MARKED.search(_text(repo, head) if "README.md" in there else "")
    others = [path for path in there if not _BESIDE.fullmatch(path)]
    if others and old_mark is None:
        raise StorageError(
            f"{_url(repo)} holds a dataset that alignpot did not push ({listed(sorted(others), 3)}). Give another name."
        )
    stale = [path for path in there if _OURS.fullmatch(path) and path not in files]
    lacking = [path for path, file in files.items() if not _is_same(there.get(path), file)]
    if not stale and not lacking and old_mark is not None and old_mark[1] == mark:
        return "already on the hub, nothing pushed"
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(files[path])) for path in lacking),
        *(CommitOperationDelete(path_in_repo=path) for path in stale),
        CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=text.encode()),
    ]
    try:
        api.create_commit(
            repo, operations, commit_message="Pairs chosen by alignpot", repo_type=_KIND, parent_commit=head
        )
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        return None
    return "pushed to the hub"


def _write(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """The rows as Parquet files, by path on the hub, without columns that hold no value.

    The bytes depend on the rows alone, not on how the subset was cut.
    """
    columns = [name for name in dataset.schema.names if dataset.has_values(name)] or dataset.schema.names
    empty = dataset.schema.empty_table().select(columns)
    paths = {}
    for split, num_rows in dataset.splits.items():
        groups = _groups(dataset.of_split(split).tables(columns), empty)
        num_files = max(1, -(-num_rows // _ROWS_PER_FILE))
        for i in range(num_files):
            name = f"{split}-{i:05d}-of-{num_files:05d}.parquet"
            paths[f"data/{name}"] = folder / name
            with (
                storage_errors(str(folder)),
                pq.ParquetWriter(folder / name, empty.schema, compression="zstd", **_CHUNKED) as file,
            ):
                for _, group in zip(range(_ROWS_PER_FILE // _ROWS_PER_GROUP), groups, strict=False):
                    file.write_table(group)
    return paths


def _groups(tables: Iterable[pa.Table], rest: pa.Table) -> Iterator[pa.Table]:
    for table in tables:
        rest = pa.concat_tables([rest, table.replace_schema_metadata(None)])
        while rest.num_rows >= _ROWS_PER_GROUP:
            yield rest.slice(0, _ROWS_PER_GROUP).combine_chunks()
            rest = rest.slice(_ROWS_PER_GROUP)
    if rest.num_rows:
        yield rest.combine_chunks()


def _is_same(entry: RepoFile | None, local: Path) -> bool:
    """Whether a file of the hub has the size and digest of a local one."""
    if entry is None or entry.size != local.stat().st_size:
        return False
    if entry.lfs is not None:
        with local.open("rb") as stream:
            return entry.lfs.sha256 == hashlib.file_digest(stream, "sha256").hexdigest()
    content = local.read_bytes()  # a small one
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _text(repo: str, commit: str | None) -> str:
    file_system = HubFileSystem(endpoint=endpoint(), skip_instance_cache=True)
    return bytes(file_system.cat_file(f"datasets/{repo}@{commit}/README.md")).decode("utf-8", "replace")


def _api() -> HfApi:
    return HfApi(endpoint=endpoint())


def _url(repo: str) -> str:
    return f"hf://datasets/{repo}"

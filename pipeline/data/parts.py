"""One part of a dataset: a Parquet object that holds every row of its shard and is its own marker.

A part is checked, encoded in memory and created by one put-if-absent. Its footer carries the counts and the digest of
the source file, so that a run is checked without reading rows. The footer also carries a digest of itself, which is
compared before anything in it is used. Pages carry checksums; scores are stored plainly, apart from the text.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.data.commit import create
from pipeline.data.place import Place
from pipeline.data.sealed import FORMAT, digest
from pipeline.drops import check_drop
from pipeline.errors import IntegrityError, SchemaError
from pipeline.faults import translated
from pipeline.shown import listed, quoted

PARTS_FOLDER: Final = "parts"
ROW_GROUP_ROWS: Final = 4096  # text of some 16 MB; a group is the unit of reading
_SUMMARY_KEY: Final = b"alignpot.part"
_SEAL_START: Final = b"alignpot.seal:"
_NO_SEAL: Final = _SEAL_START + b"0" * 32  # is replaced by the footer's own digest
_SEAL: Final = re.compile(rb"alignpot\.seal:[0-9a-f]{32}")
_TAIL_BYTES: Final = 64 * 2**10
_PART_NAME = re.compile(r"^(\d{8,})\.parquet$")
_TOKEN_COLUMNS: Final = (names.NUM_TOKENS_PROMPT, names.NUM_TOKENS_CHOSEN, names.NUM_TOKENS_REJECTED)
_FEW_VALUES: Final = (names.STATUS, names.DROP_STAGE, names.DROP_REASON, names.SOURCE_FILE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """What one part must look like: all that a worker needs of a plan."""

    index: int
    num_rows: int | None
    """None if only the work itself tells how many rows come out."""
    schema: pa.Schema
    fingerprint_digest: str
    source_digest: str | None = None
    """Of the file that the rows must be read from; None if they come from no file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartSummary:
    """What the footer of a part says about it."""

    index: int
    num_rows: int
    num_kept: int
    num_dropped: int
    drops: Mapping[str, Mapping[str, int]]
    """Dropped rows by stage, then reason."""
    num_tokens: Mapping[str, int]
    """Sums over kept rows, by column."""
    id_digest: str
    """Sum of the 128-bit hashes of the ids of kept rows modulo 2^128, as 32 hex digits: independent of order."""
    fingerprint_digest: str
    source_digest: str | None
    """Of the file that the rows were read from; None if they come from no file."""
    size: int
    """Bytes of the object."""
    footer_digest: str
    """blake2b of the footer, which holds the place and size of every page."""


def part_path(index: int) -> str:
    """Path of a part, relative to the dataset."""
    return f"{PARTS_FOLDER}/{index:08d}.parquet"


def part_sizes(dataset: Place, num_parts: int) -> NDArray[np.int64]:
    """Bytes of each of so many parts, by index; -1 if it has not been committed."""
    sizes = np.full(num_parts, -1, dtype=np.int64)
    for name, size in (dataset / PARTS_FOLDER).objects():
        match = _PART_NAME.match(name)
        if match is not None and int(match[1]) < num_parts:
            sizes[int(match[1])] = size
    return sizes


def commit_part(dataset: Place, spec: PartSpec, table: pa.Table) -> PartSummary:
    """Commit `table`, all rows of one shard, as the part that `spec` describes; the first writer of a part wins.

    The metadata of its schema says what the rows were read from, see `schema.READ_FROM`.

    Returns:
        The summary of the committed part; if another writer was first, of that part.

    Raises:
        SchemaError: the table has not the columns of the run.
        IntegrityError: it has not every row of the shard once, or rows of another file; an outcome or an id is
            missing, or a score is NaN or infinite; or the part there is of another run.
    """
    place = dataset / part_path(spec.index)
    where = str(place)
    if not table.schema.equals(spec.schema):
        raise SchemaError(f"{where}: {_schema_difference(table.schema, spec.schema)}")
    if spec.num_rows is not None and table.num_rows != spec.num_rows:
        raise IntegrityError(f"{where}: {table.num_rows} rows for a shard of {spec.num_rows}; wanted each row once.")
    data = _encoded(table, _facts(spec, table, where))
    if create(place, data):
        return _summary(data[-footer_bytes(data) :], len(data), where)
    return read_part_summary(dataset, spec)


def read_part_summary(dataset: Place, spec: PartSpec, size: int | None = None) -> PartSummary:
    """The summary of a committed part, from its footer alone; `size` in bytes, if known, saves a request.

    Raises:
        IntegrityError: the part is missing or damaged, or has another fingerprint, index or source.
    """
    place = dataset / part_path(spec.index)
    where = str(place)
    size = place.size() if size is None else size
    if size is None:
        raise IntegrityError(f"{where} is missing. Run the same command again.")
    summary = _summary(read_footer(place, size), size, where)
    if summary.fingerprint_digest != spec.fingerprint_digest:
        raise IntegrityError(
            f"{where} bears fingerprint {summary.fingerprint_digest}, the run {spec.fingerprint_digest}. "
            "Someone put a part of another run there; use another path."
        )
    _check_source(summary.source_digest, spec, where)
    if summary.index != spec.index:
        raise IntegrityError(f"{where} is part {summary.index} under another name. Use another path.")
    return summary


def check_part(dataset: Place, spec: PartSpec, size: int, footer_digest: str) -> None:
    """Read a committed part whole, and compare its rows with what its footer says of them.

    Raises:
        IntegrityError: it is missing or damaged, or not the part of this size and footer.
    """
    place = dataset / part_path(spec.index)
    where = str(place)
    summary = read_part_summary(dataset, spec, size)
    if summary.footer_digest != footer_digest:
        raise IntegrityError(f"{where} is another part than the one that the manifest names. Restore it.")
    try:
        data = pa.BufferReader(place.read_range(0, size))
        table = pq.ParquetFile(data, page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        fault = translated(error, where)
        raise fault or IntegrityError(f"{where} is damaged: its rows cannot be decoded. Restore it.") from None
    read_from = None if summary.source_digest is None else {names.READ_FROM: summary.source_digest}
    facts = _facts(spec, table.replace_schema_metadata(read_from), where)
    said = dataclasses.asdict(summary)
    if any(said[name] != value for name, value in facts.items() if name != "format"):
        raise IntegrityError(f"{where} is damaged: its rows are not those that its footer counts. Restore it.")


def read_footer(place: Place, size: int) -> bytes:
    """The footer of a Parquet object of `size` bytes: metadata, its length and the magic.

    Raises:
        IntegrityError: there is none.
    """
    tail = place.read_range(max(0, size - _TAIL_BYTES), size)
    length = footer_bytes(tail)
    if tail[-4:] != b"PAR1" or not 8 < length <= size:
        raise IntegrityError(f"{place} is damaged: no Parquet footer. Restore it, or score again.")
    return tail[-length:] if length <= len(tail) else place.read_range(size - length, size)


def add_id_digests(digests: Iterable[str]) -> str:
    """The id digest of several ids or parts together."""
    return f"{sum(int(each, 16) for each in digests) % 2**128:032x}"


def footer_bytes(data: bytes | bytearray) -> int:
    """Length of a Parquet footer, given the end of the object."""
    return int.from_bytes(data[-8:-4], "little") + 8


def _check_source(found: str | None, spec: PartSpec, where: str) -> None:
    if found != spec.source_digest:
        raise IntegrityError(
            f"{where} holds rows of a source file with digest {found}; wanted {spec.source_digest}. "
            "Score again under another path."
        )


def _summary(footer: bytes, size: int, where: str) -> PartSummary:
    seal = _SEAL.search(footer)  # compared before a byte of the footer is decoded
    if seal is None or seal[0] != _SEAL_START + digest(_SEAL.sub(_NO_SEAL, footer)).encode():
        raise IntegrityError(f"{where} is damaged: its footer is not as written. Restore it, or score again.")
    try:
        facts = json.loads(pq.read_metadata(pa.BufferReader(footer)).metadata[_SUMMARY_KEY])
        if facts.pop("format") != FORMAT:
            raise IntegrityError(f"{where} was written by another version. Use another path.")
        return PartSummary(**facts, size=size, footer_digest=digest(footer))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{where} is damaged, or no part of ours ({type(error).__name__}). Restore it, or score again."
        ) from None


def _facts(spec: PartSpec, table: pa.Table, where: str) -> dict[str, Any]:
    kept = table.filter(pc.equal(table[names.STATUS], names.KEPT))
    dropped = table.filter(pc.equal(table[names.STATUS], names.DROPPED))
    if kept.num_rows + dropped.num_rows != table.num_rows:
        raise IntegrityError(f"{where}: {table.num_rows} rows, {kept.num_rows} kept, {dropped.num_rows} dropped.")
    _check_kept(kept, where)
    read_from = (table.schema.metadata or {}).get(names.READ_FROM)
    source_digest = None if read_from is None else read_from.decode()
    _check_source(source_digest, spec, where)
    outcomes = (dropped[name].to_pylist() for name in (names.DROP_STAGE, names.DROP_REASON))
    drops: dict[str, dict[str, int]] = {}
    for (stage, reason), count in sorted(collections.Counter(zip(*outcomes, strict=True)).items(), key=str):
        check_drop(stage, reason, where)
        drops.setdefault(stage, {})[reason] = count
    tokens = {name: kept[name] for name in _TOKEN_COLUMNS if name in kept.column_names}
    if names.RESPONSE_TOKENS in kept.column_names:
        tokens[names.RESPONSE_TOKENS] = pc.list_flatten(kept[names.RESPONSE_TOKENS])
    return {
        "format": FORMAT,
        "index": spec.index,
        "num_rows": table.num_rows,
        "num_kept": kept.num_rows,
        "num_dropped": dropped.num_rows,
        "drops": drops,
        "num_tokens": {name: pc.sum(values, min_count=0).as_py() for name, values in tokens.items()},
        "id_digest": add_id_digests(digest(each.encode()) for each in kept[names.ID].to_pylist()),
        "fingerprint_digest": spec.fingerprint_digest,
        "source_digest": source_digest,
    }


def _check_kept(kept: pa.Table, where: str) -> None:
    for name in {names.ID, names.CONTENT_DIGEST} & set(kept.column_names):
        if kept[name].null_count:
            raise IntegrityError(f"{where}: {kept[name].null_count} kept rows have no {name}.")
    several = () if names.REWARD_CHOSEN in kept.column_names else names.named_rewards(kept.column_names)
    judged = names.lead_fields(names.judged_rewards(kept.column_names))
    for field in (*names.SCORE_FIELDS, *names.reward_fields(several), *judged):
        if not pa.types.is_floating(field.type) or field.name not in kept.column_names:
            continue
        wrong = pc.invert(pc.is_finite(kept[field.name]).fill_null(fill_value=True))
        if pc.any(wrong, min_count=0).as_py():
            ids = kept[names.ID].filter(wrong).to_pylist()
            first = listed(ids[:10], show=quoted)
            raise IntegrityError(
                f"{where}: {field.name} is NaN or infinite in {len(ids)} kept rows, first ids [{first}]. "
                "Such rows must be dropped with a reason."
            )


def _schema_difference(got: pa.Schema, wanted: pa.Schema) -> str:
    types = {field.name: str(field.type) for field in wanted}
    wrong = [f"{f.name} is {f.type}, wanted {types.get(f.name, 'no such column')}" for f in got if f not in wanted]
    missing = [name for name in wanted.names if name not in got.names]
    return f"{'; '.join(wrong) or 'columns in another order'}{f'; missing {missing}' if missing else ''}."


def _encoded(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    messages = {names.PROMPT, names.CHOSEN, names.REJECTED} & set(table.column_names)
    roles = [f"{column}.list.element.role" for column in sorted(messages)]
    few = [name for name in _FEW_VALUES if name in table.column_names]
    plain = [f.name for f in table.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(None)
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=[*few, *roles],
        column_encoding=dict.fromkeys(plain, "PLAIN"),
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({_SUMMARY_KEY.decode(): json.dumps(facts), "seal": _NO_SEAL.decode()})
    data = bytearray(sink.getvalue())
    footer = slice(len(data) - footer_bytes(data), len(data))
    data[footer] = _SEAL.sub(_SEAL_START + digest(bytes(data[footer])).encode(), data[footer])
    return bytes(data)

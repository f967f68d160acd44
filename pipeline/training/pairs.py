"""The pairs of a training: read from saved datasets, each once, and tokenised as they were scored.

Every pair is tokenised here by the scoring engine's own rule, which is TRL's. That leaves out the pairs a trainer
could not use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import DataError, SchemaError, SourceError
from pipeline.schema import (
    CHOSEN,
    ID,
    NUM_TOKENS_CHOSEN,
    NUM_TOKENS_REJECTED,
    PROMPT,
    REFERENCE_LOGP_CHOSEN,
    REFERENCE_LOGP_REJECTED,
    REJECTED,
    TOOLS,
)
from pipeline.shown import shown
from pipeline.training.job import TrainJob

if TYPE_CHECKING:
    from datasets import Dataset

MESSAGE_COLUMNS: Final = (PROMPT, CHOSEN, REJECTED)
REFERENCE_COLUMNS: Final = (REFERENCE_LOGP_CHOSEN, REFERENCE_LOGP_REJECTED)
TOKEN_COLUMNS: Final = ("chosen_ids", "chosen_start", "rejected_ids", "rejected_start")
TOKEN_COUNTS: Final = (NUM_TOKENS_CHOSEN, NUM_TOKENS_REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs ready to train on.

    Attributes:
        dataset: columns prompt, chosen, rejected, those of TOKEN_COLUMNS, the numbers of tokens that were scored, tools
            where a pair has some, and the reference log-probs where they are wanted.
        num_left_out: pairs that cannot be trained on, such as those whose prompt fills tokens.max_length.
    """

    dataset: "Dataset"
    num_left_out: int


def load_pairs(job: TrainJob, tokenizer: Any, scratch: Path, *, with_reference: bool) -> Pairs:
    """Read and tokenise the pairs of a job; what is written meanwhile goes below `scratch`.

    Raises:
        SourceError: no saved dataset there, or no pair to train on.
        SchemaError: a column is missing.
        DataError: a pair has no reference log-probs.
    """
    columns = [*MESSAGE_COLUMNS, *(REFERENCE_COLUMNS if with_reference else ())]
    pairs = read_pairs(job, scratch, columns)
    kept = [*columns, *(name for name in (ID, TOOLS, *TOKEN_COUNTS) if name in pairs.column_names)]
    return _tokenised(pairs.select_columns(kept), job, tokenizer, with_reference=with_reference)


def read_pairs(job: TrainJob, scratch: Path, columns: Sequence[str] = MESSAGE_COLUMNS) -> "Dataset":
    """The pairs of all datasets of a job, each once, with the columns that all of them have.

    Raises:
        SourceError: no saved dataset there, or no pair in any.
        SchemaError: one lacks a column of `columns`.
    """
    from datasets import concatenate_datasets

    parts = [_saved(job, url, scratch / f"data-{i}") for i, url in enumerate(job.datasets)]
    for url, part in zip(job.datasets, parts, strict=True):
        _require(part, columns, url)
    if not sum(len(part) for part in parts):
        raise SourceError(f"The datasets {list(job.datasets)} hold 0 pairs. Select more pairs, or train on other ones.")
    common = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    pairs = concatenate_datasets([part.select_columns(common) for part in parts])
    return _each_once(pairs) if ID in common else pairs


def _saved(job: TrainJob, url: str, scratch: Path) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    from pipeline.data.place import Place
    from pipeline.faults import storage_errors

    place = Place.open(url, job.storage)
    place.check_readable()
    path = place.root
    if not place.is_local:
        with storage_errors(url):
            place.fs.get(path, str(scratch), recursive=True)
        path = str(scratch)
    try:
        loaded = load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{url} is no dataset that save_to_disk wrote ({type(error).__name__}). Give the folder hf of a subset."
        ) from None
    if not isinstance(loaded, DatasetDict):
        return loaded
    if "train" not in loaded:
        raise SourceError(f"{url} has the splits {sorted(loaded)}, none of them train. Give the folder of one split.")
    return loaded["train"]


def _require(part: "Dataset", columns: Sequence[str], url: str) -> None:
    missing = [name for name in columns if name not in part.column_names]
    if not missing:
        return
    remedy = "Give preference pairs as message lists, such as the folder hf of a subset."
    if set(missing) <= {*REFERENCE_COLUMNS}:
        remedy = "Score with a reference section, or set train.precomputed_reference: false."
    raise SchemaError(f"{url} lacks {', '.join(missing)}; it has {', '.join(part.column_names)}. {remedy}")


def _each_once(pairs: "Dataset") -> "Dataset":
    seen: dict[str, int] = {}
    for row, name in enumerate(pairs[ID]):
        seen.setdefault(name, row)
    return pairs if len(seen) == len(pairs) else pairs.select(list(seen.values()))


def _tokenised(pairs: "Dataset", job: TrainJob, tokenizer: Any, *, with_reference: bool) -> Pairs:
    from pipeline.models.prompts import PairTokenizer, TokenizedPair

    engine = PairTokenizer(tokenizer, job.tokens.model_copy(update={"preset": "trl"}))
    rows: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in TOKEN_COLUMNS}
    for index, row in enumerate(pairs):
        pair = engine.tokenize(row[PROMPT], row[CHOSEN], row[REJECTED], row.get(TOOLS))
        if not isinstance(pair, TokenizedPair):
            continue
        if with_reference:
            _check_reference(row, index)
        rows.append(index)
        for name in TOKEN_COLUMNS:
            columns[name].append(getattr(pair, name))
    if not rows:
        raise SourceError(
            f"None of {len(pairs)} pairs can be trained on: their prompts fill tokens.max_length "
            f"({job.tokens.max_length}), or the chat template refuses them. Raise tokens.max_length."
        )
    return Pairs(dataset=_with_columns(pairs, rows, columns), num_left_out=len(pairs) - len(rows))


def _with_columns(pairs: "Dataset", rows: list[int], columns: dict[str, list[Any]]) -> "Dataset":
    """The rows picked, with token columns beside them and without those that only checks read."""
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    unwanted = [name for name in (ID,) if name in pairs.column_names]
    if TOOLS in pairs.column_names and not any(pairs[TOOLS]):
        unwanted.append(TOOLS)
    tokens = Dataset(pa.table({name: pa.array(values) for name, values in columns.items()}))
    return concatenate_datasets([pairs.select(rows).remove_columns(unwanted), tokens], axis=1)


def _check_reference(row: dict[str, Any], index: int) -> None:
    if any(row[column] is None for column in REFERENCE_COLUMNS):
        raise DataError(
            f"Pair {shown(row.get(ID, f'row {index}'))} has no reference log-probs. Score with a reference section, or "
            "set train.precomputed_reference: false."
        )

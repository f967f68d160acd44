"""The pairs of a training: read from saved datasets, each once, and tokenised as they were scored.

Every pair is tokenised here by the scoring engine's own rule, which is TRL's. So pairs that a trainer could not use are
left out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import schema
from pipeline.errors import DataError, SchemaError, SourceError
from pipeline.schema import CHOSEN, ID, MESSAGE_FIELDS, PROMPT, REJECTED, TEMPLATE_KWARGS, TOOLS, WEIGHT
from pipeline.shown import shown
from pipeline.sources.turns import message_of
from pipeline.training.job import TrainJob

if TYPE_CHECKING:
    from datasets import Dataset

MESSAGE_COLUMNS: Final = (PROMPT, CHOSEN, REJECTED)
REFERENCE_COLUMNS: Final = (schema.REFERENCE_LOGP_CHOSEN, schema.REFERENCE_LOGP_REJECTED)
TOKEN_COLUMNS: Final = ("chosen_ids", "chosen_start", "rejected_ids", "rejected_start")
TOKEN_COUNTS: Final = (schema.NUM_TOKENS_CHOSEN, schema.NUM_TOKENS_REJECTED)


def load_pairs(job: TrainJob, tokenizer: Any, scratch: Path, *, with_reference: bool) -> tuple["Dataset", int]:
    """The pairs of a job, tokenised, and how many were left out because they cannot be trained on.

    Columns: prompt, chosen, rejected, TOKEN_COLUMNS, the numbers of tokens that were scored, tools if some pair has
    any, weights if the datasets have them, and the reference log-probs if they are wanted. Temporary files go below
    `scratch`.

    Raises:
        SourceError, SchemaError: as `read_pairs`, or no pair can be trained on.
        DataError: a pair has no reference log-probs, or no weight.
    """
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    from pipeline.models.prompts import PairTokenizer, TokenizedPair

    columns = [*MESSAGE_COLUMNS, *(REFERENCE_COLUMNS if with_reference else ())]
    pairs = read_pairs(job, scratch, columns)
    beside = (ID, TOOLS, TEMPLATE_KWARGS, *TOKEN_COUNTS, WEIGHT)
    pairs = pairs.select_columns([*columns, *(name for name in beside if name in pairs.column_names)])
    engine = PairTokenizer(tokenizer, job.tokens.model_copy(update={"preset": "trl"}))
    rows: list[int] = []
    tokens: dict[str, list[Any]] = {name: [] for name in TOKEN_COLUMNS}
    for index, row in enumerate(pairs):
        pair = engine.tokenize(*(row.get(name) for name in (*MESSAGE_COLUMNS, TOOLS, TEMPLATE_KWARGS)))
        if not isinstance(pair, TokenizedPair):
            continue
        if with_reference and any(row[column] is None for column in REFERENCE_COLUMNS):
            raise DataError(
                f"Pair {shown(row.get(ID, f'row {index}'))} has no reference log-probs. Score with a reference "
                "section, or set train.precomputed_reference: false."
            )
        _check_weight(row, index)
        rows.append(index)
        for name in TOKEN_COLUMNS:
            tokens[name].append(getattr(pair, name))
    if not rows:
        raise SourceError(
            f"None of {len(pairs)} pairs can be trained on: their prompts fill tokens.max_length "
            f"({job.tokens.max_length}), or the chat template refuses them. Raise tokens.max_length."
        )
    unwanted = [ID] if ID in pairs.column_names else []
    if TOOLS in pairs.column_names and not any(pairs[TOOLS]):
        unwanted.append(TOOLS)
    added = Dataset(pa.table({name: pa.array(values) for name, values in tokens.items()}))
    kept = _as_trl_reads(pairs.select(rows).remove_columns(unwanted))
    return concatenate_datasets([kept, added], axis=1), len(pairs) - len(rows)


def _check_weight(row: Mapping[str, Any], index: int) -> None:
    weight = row.get(WEIGHT, 1.0)
    if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise DataError(
            f"Pair {shown(row.get(ID, f'row {index}'))} has a {WEIGHT} of {shown(weight)}; wanted a number from 0 on, "
            f"by which its loss is multiplied. Rename a column {WEIGHT} that means something else."
        )


def _as_trl_reads(pairs: "Dataset") -> "Dataset":
    """The pairs with messages that have no fields but their own, and arguments of templates as objects."""
    from datasets import Dataset, concatenate_datasets

    types = {name: pairs.features.arrow_schema.field(name).type.value_type for name in MESSAGE_COLUMNS}
    held = {name: pairs[name] for name, kind in types.items() if any(f.name in MESSAGE_FIELDS for f in kind)}
    columns = {name: [[message_of(turn) for turn in turns] for turns in lists] for name, lists in held.items()}
    if TEMPLATE_KWARGS in pairs.column_names:
        columns[TEMPLATE_KWARGS] = [json.loads(text or "{}") for text in pairs[TEMPLATE_KWARGS]]
    if not columns:
        return pairs
    added = Dataset.from_dict(columns, on_mixed_types="use_json")
    return concatenate_datasets([pairs.remove_columns([*columns]), added], axis=1)


def read_pairs(job: TrainJob, scratch: Path, columns: Sequence[str] = MESSAGE_COLUMNS) -> "Dataset":
    """The pairs of all datasets of a job, each once, with the columns that all of them have.

    Raises:
        SourceError: no saved dataset there, or no pair in any.
        SchemaError: one lacks a column of `columns`.
    """
    from datasets import concatenate_datasets

    parts = [_saved(job, url, scratch / f"data-{i}") for i, url in enumerate(job.datasets)]
    for url, part in zip(job.datasets, parts, strict=True):
        missing = [name for name in columns if name not in part.column_names]
        if missing:
            remedy = "Give preference pairs as message lists, such as the folder hf of a subset."
            if set(missing) <= {*REFERENCE_COLUMNS}:
                remedy = "Score with a reference section, or set train.precomputed_reference: false."
            raise SchemaError(f"{url} lacks {', '.join(missing)}; it has {', '.join(part.column_names)}. {remedy}")
    if not sum(len(part) for part in parts):
        raise SourceError(f"The datasets {list(job.datasets)} hold 0 pairs. Select more pairs, or train on other ones.")
    if len({WEIGHT in part.column_names for part in parts}) > 1:
        raise SchemaError(
            f"some of the datasets {list(job.datasets)} have a column {WEIGHT}, others have none. Select all of them "
            "with select.weights, or none."
        )
    common = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    pairs = concatenate_datasets([part.select_columns(common) for part in parts])
    if ID not in common:
        return pairs
    first: dict[str, int] = {}
    for row, name in enumerate(pairs[ID]):
        first.setdefault(name, row)
    return pairs if len(first) == len(pairs) else pairs.select(list(first.values()))


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

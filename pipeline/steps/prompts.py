"""`alignpot prompts`: prompts whose responses pass sometimes, or differ in reward, for trainers that sample themselves.

    candidates with rewards -> figures of each prompt -> band -> prompts as Hugging Face dataset and Parquet

The same config, run again, finds its prompts and does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.config.prompting import PromptBand, PromptsConfig
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.files import REPORT_FILE, file_shards, finish_files, with_layout, write_files
from pipeline.data.manifest import EXPORT, MANIFEST_FILE
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run, check_claim
from pipeline.data.sealed import read_sealed, sealed
from pipeline.errors import DataError, SchemaError, SourceError
from pipeline.metrics.columns import BoolArray, FloatArray, floats, single_array
from pipeline.selection.per_prompt import prompt_keys
from pipeline.selection.source import Positions
from pipeline.shown import listed, shown_path

_ROWS_PER_FILE: Final = 100_000
_FORMATS: Final = ("hf", "parquet")
_FIGURES: Final = (
    pa.field("num_responses", pa.int64()),
    pa.field("pass_rate", pa.float64()),
    pa.field("reward_mean", pa.float64()),
    pa.field("reward_variance", pa.float64()),
)
_OF_RESPONSES: Final = frozenset(
    {s.CHOSEN, s.REJECTED, s.CONTENT_DIGEST, s.RESPONSES, s.FINISH_REASONS, s.RESPONSE_TOKENS, s.PROMPT_ID}
    | {field.name for field in (*s.SCORE_FIELDS, *s.OUTCOME_FIELDS, *s.SUBSET_FIELDS)}
)
_PREFIXES: Final = (s.RESPONSE_REWARDS, "reward_", "lead_")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """Of every row: its responses with a reward, the share of them that passes (NaN without pass_above), mean and
    variance of the rewards, and the digest of the prompt.
    """

    num: npt.NDArray[np.int64]
    pass_rate: FloatArray
    mean: FloatArray
    variance: FloatArray
    keys: npt.NDArray[np.uint64]


def choose_prompts(config: PromptsConfig, dataset: Dataset, place: Place) -> str:
    """Write the prompts at the place, unless they are there already; returns what was kept, in words.

    dataset: what `open_candidates` gave.

    Raises:
        SchemaError: the candidates hold no rewards of several responses.
        DataError: no prompt is inside the band.
    """
    column = _reward_column(dataset.schema, config.prompts.reward)
    fingerprint = {"candidates": dataset.identity, "export": "prompts", "prompts": config.prompts.fingerprint()}
    done = Dataset.find(place, EXPORT)
    check_claim(place, EXPORT, fingerprint)
    if done is not None:
        return _told(done.manifest.extra, place)
    check_writable(place)
    figures = _read(dataset, column, config.prompts)
    kept, about = _chosen(figures, config.prompts)
    columns = _kept_columns(dataset)
    plan = Plan(
        kind=EXPORT,
        fingerprint=fingerprint,
        config=config.model_dump(mode="json"),
        schema=pa.schema([*(dataset.schema.field(name) for name in columns), *_FIGURES]),
        shards=file_shards({s.TRAIN: kept.size}, _ROWS_PER_FILE),
        formats=_FORMATS,
    )
    run = Run.claim(place, with_layout(plan))
    files = write_files(run, _tables(dataset, columns, kept, figures))
    finish_files(run, files, {REPORT_FILE: sealed(about)}, about)
    return _told(about, place)


def open_candidates(config: PromptsConfig) -> Dataset:
    """The candidates, of whatever kind. Raises a SourceError if there is no complete dataset."""
    place = Place.open(config.candidates, config.storage)
    manifest = read_sealed(place / MANIFEST_FILE, records="files")
    if manifest is None:
        raise SourceError(
            f"candidates: {shown_path(config.candidates)} holds no complete dataset of alignpot. Give what `alignpot "
            "reward`, `score` or a round of self-play wrote."
        )
    return Dataset.open(place, str(manifest.get("kind")))


def _reward_column(schema: pa.Schema, reward: str | None) -> str:
    wanted = [s.response_rewards(reward or ""), *([] if reward else [s.REWARDS_ALL])]
    found = next((name for name in wanted if name in schema.names), None)
    if found is None or s.PROMPT not in schema.names:
        prefix = f"{s.RESPONSE_REWARDS}_"
        named = [name.removeprefix(prefix) for name in schema.names if name.startswith(prefix)]
        remedy = f"Set prompts.reward to one of {listed(named)}." if named else "Run `alignpot reward` on responses."
        raise SchemaError(
            f"prompts needs {s.PROMPT} and {' or '.join(wanted)}; the candidates have {schema.names}. {remedy}"
        )
    return found


def _read(dataset: Dataset, column: str, band: PromptBand) -> _Figures:
    parts = [_of_table(table, column, band.pass_above) for table in dataset.tables([s.PROMPT, column])]
    if not parts:
        raise DataError("the candidates have no row that was kept, so there is no prompt to choose.")
    names = ("num", "pass_rate", "mean", "variance", "keys")
    return _Figures(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _of_table(table: pa.Table, column: str, pass_above: float | None) -> _Figures:
    rewards = single_array(table, column)
    values, rows = floats(pc.list_flatten(rewards), column), pc.list_parent_indices(rewards).to_numpy()
    known = np.isfinite(values)
    values, rows = values[known], rows[known]

    def mean_of(numbers: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            means: FloatArray = np.bincount(rows, numbers, table.num_rows) / num
        return means

    num = np.bincount(rows, minlength=table.num_rows)
    mean = mean_of(values)
    passed = np.full(values.size, np.nan) if pass_above is None else (values > pass_above).astype(np.float64)
    return _Figures(
        num=num,
        pass_rate=mean_of(passed),
        mean=mean,
        variance=mean_of((values - mean[rows]) ** 2),
        keys=prompt_keys(single_array(table, s.PROMPT)),
    )


def _chosen(figures: _Figures, band: PromptBand) -> tuple[Positions, dict[str, Any]]:
    """Ascending places of the rows that are kept, and the numbers for the report."""
    rows = np.zeros(figures.num.size, dtype=np.bool_)
    rows[np.unique(figures.keys, axis=0, return_index=True)[1]] = True
    left_out = {"repeated_prompts": int(rows.size - np.count_nonzero(rows))}

    def leave_out(reason: str, inside: BoolArray) -> None:
        left_out[reason] = int(np.count_nonzero(rows & ~inside))
        rows[~inside] = False

    leave_out("too_few_rewards", figures.num >= band.min_responses)
    about: dict[str, Any] = {"num_rows": int(rows.size), "num_prompts": int(np.count_nonzero(rows))}
    of_all = _means(figures, rows)
    inside = {}
    if band.pass_rate is not None:
        low, high = band.pass_rate
        inside["outside_pass_rate"] = (figures.pass_rate >= low) & (figures.pass_rate <= high)
    if band.variance is not None and rows.any():
        low, high = np.quantile(figures.variance[rows], band.variance, method="inverted_cdf").tolist()
        inside["outside_variance"] = (figures.variance >= low) & (figures.variance <= high)
        about["variance"] = [low, high]
    for reason, holds in inside.items():
        leave_out(reason, holds)
    if not rows.any():
        raise DataError(f"no prompt is inside the band: {left_out}. Widen prompts.pass_rate or variance.")
    means = {"all": of_all, "kept": _means(figures, rows)}
    return np.flatnonzero(rows), {
        **about,
        "num_kept": int(np.count_nonzero(rows)),
        "left_out": left_out,
        "means": means,
    }


def _means(figures: _Figures, rows: BoolArray) -> dict[str, float | None]:
    values = {"pass_rate": figures.pass_rate, "reward_mean": figures.mean, "reward_variance": figures.variance}
    known = {name: of_rows[rows][np.isfinite(of_rows[rows])] for name, of_rows in values.items()}
    return {name: float(numbers.mean()) if numbers.size else None for name, numbers in known.items()}


def _kept_columns(dataset: Dataset) -> list[str]:
    """Id, prompt, and what else stands beside them, such as the answers that a reward function compares with."""
    own = {field.name for field in _FIGURES}
    names = [name for name in dataset.schema.names if name not in _OF_RESPONSES and not name.startswith(_PREFIXES)]
    beside = [name for name in names if name not in (s.ID, s.PROMPT) and name not in own and dataset.has_values(name)]
    return [*(name for name in (s.ID, s.PROMPT) if name in names), *beside]


def _tables(dataset: Dataset, columns: list[str], kept: Positions, figures: _Figures) -> Any:
    start = 0
    for table in dataset.take(kept, columns):
        rows = kept[start : start + table.num_rows]
        numbers = (figures.num, figures.pass_rate, figures.mean, figures.variance)
        for field, values in zip(_FIGURES, numbers, strict=True):
            table = table.append_column(field, pa.array(values[rows], field.type, from_pandas=True))  # noqa: PLW2901
        yield table
        start += table.num_rows


def _told(about: Mapping[str, Any], place: Place) -> str:
    path, means = shown_path(str(place).rstrip("/")), about["means"]
    lines = [f"prompts: {about['num_kept']:,} of {about['num_prompts']:,} kept, of {about['num_rows']:,} rows"]
    lines += [f"  {reason}: {count:,}" for reason, count in about["left_out"].items() if count]
    lines += [
        f"  mean {name}: {means['all'][name]:.4g}, of those kept {means['kept'][name]:.4g}"
        for name in means["all"]
        if means["all"][name] is not None
    ]
    lines += [f"written to {path}", f'  GRPOTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)']
    return "\n".join(lines)

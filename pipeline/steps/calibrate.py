"""The same rows scored by two configs: how far margins, ranks and what would be selected agree, and how fast each is.

For two back ends of one model (torch and vllm, a reward here and behind a server), or for two models. The rows are a
seeded sample of the first config's source. Each side is scored by `score`; nothing else is written.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import ColumnsModel, ColumnsReward, Config, Select, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.sealed import differences
from pipeline.errors import ConfigError, DataError
from pipeline.metrics import moments_of
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.ids import hash_ids
from pipeline.metrics.ranks import spearman
from pipeline.selection.compare import compare_scores
from pipeline.selection.ranking import Query, rank
from pipeline.selection.selection import Reader
from pipeline.selection.source import TableSource, no_positions
from pipeline.selection.text import aligned
from pipeline.shown import shown
from pipeline.sources.shards import plan_shards
from pipeline.steps.rows_to_score import rows_of_sources
from pipeline.steps.score import prepare_score, score
from pipeline.steps.shards import OwnRows
from pipeline.steps.step import Step, run_step
from pipeline.steps.work import read_shard

SIDES: Final = ("first", "second")
_KIND: Final = "sample"
_FRACTION: Final = 0.4  # where select has none
_STRETCH: Final = 16  # rows beside each other
_SHARD_ROWS: Final = 4096
_SUPERSETS: Final = (1, 1.5, 2, 3, 4, 6, 8)
_COMPARED: Final = ("policy", "reference", "reward", "rewards", "tokens", "objective")
_MODELS: Final = ("policy", "reference", "reward", "rewards")
_TEXTS: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED, schema.TOOLS, schema.TEMPLATE_KWARGS)
_NUMBERS: Final = {
    "max": "largest difference",
    "mean": "mean difference",
    "rms": "root of the mean square",
    "max_z": "largest, in z units",
    "mean_z": "mean, in z units",
    "rms_z": "root of the mean square, in z units",
    "rank_correlation": "rank correlation",
    "other_sign": "share of the other sign",
}


def calibrate(first: Config, second: Config, *, num_rows: int, keep: str | None = None) -> dict[str, Any]:
    """Score `num_rows` rows by both configs and compare; JSON-ready.

    keep: folder or URL that keeps the rows and both scored datasets, so that a call that was stopped goes on. Left out,
    they go to a temporary folder of this machine.

    Raises an AlignpotError if a side cannot be scored, or no two rows have scores of both.
    """
    with _folder(first, keep) as folder:
        rows = _sample(first, second, num_rows, f"{folder}/rows")
        scored = [
            _scored(config.model_copy(update={"scored": f"{folder}/{side}"}), rows)
            for side, config in zip(SIDES, (first, second), strict=True)
        ]
    tables = [table for table, _ in scored]
    kept = [pc.equal(table[schema.STATUS], schema.KEPT) for table in tables]
    pairs = [table.filter(pc.and_(*kept)) for table in tables]
    if pairs[0].num_rows < 2:
        raise DataError(
            f"{pairs[0].num_rows} of {rows.num_kept} rows have scores of both configs; wanted two or more. Take more "
            "rows, or look at the drop reasons of `alignpot score`."
        )
    fraction = _FRACTION if first.select is None or first.select.fraction is None else first.select.fraction
    query = Query(objective=first.objective, metric=first.metric, rule=Select(fraction=fraction))
    sides = [_Side.of(table, query) for table in pairs]
    lacking = [pc.and_not(theirs, ours) for ours, theirs in (kept, kept[::-1])]
    return {
        "differs": [list(each) for each in differences(_compared(first), _compared(second))],
        "rows": {
            "taken": rows.num_kept,
            "compared": pairs[0].num_rows,
            **{
                f"dropped_by_{side}_only": _reasons(table.filter(only_there))
                for side, table, only_there in zip(SIDES, tables, lacking, strict=True)
            },
        },
        "rows_per_second": {side: rates for side, (_, rates) in zip(SIDES, scored, strict=True)},
        "hours_for_a_million_rows": {
            side: {name: float(f"{1e6 / rate / 3600:.4g}") for name, rate in rates.items()}
            for side, (_, rates) in zip(SIDES, scored, strict=True)
        },
        "margins": _margins(*sides),
        "selection": _selection(query, *sides),
    }


def _sample(first: Config, second: Config, num_rows: int, url: str) -> Dataset:
    """Pairs of the first config's source as a dataset: those of a few stretches of rows, picked by a seeded hash."""
    of_columns: dict[str, Any] = {
        name: section
        for config in (second, first)
        for name in ("policy", "reference")
        if isinstance(section := getattr(config, name), ColumnsModel)
    }
    held = {
        name: section
        for config in (second, first)
        for name, section in config.members.items()
        if isinstance(section, ColumnsReward)
    }
    of_columns |= {"reward": held.pop("", None), "rewards": held or None}
    found = rows_of_sources(first.model_copy(update=of_columns))
    shards = plan_shards(found["rows"].files, _STRETCH)
    seed = next(iter(first.all_sources().values())).seed
    order = np.argsort(hash_ids(pa.array([str(shard.index) for shard in shards]), seed), kind="stable")
    tables, num_found = [found["schema"].empty_table()], 0
    for place in order.tolist():
        table = read_shard(found["rows"].reader, shards[place]).table.replace_schema_metadata(None)
        tables.append(table.filter(pc.equal(table[schema.STATUS], schema.KEPT)))
        num_found += tables[-1].num_rows
        if num_found >= num_rows:
            break
    rows = pa.concat_tables(tables).slice(0, num_rows).combine_chunks()
    step = Step(
        kind=_KIND,
        url=url,
        rows=OwnRows(rows=rows, shard_rows=_SHARD_ROWS),
        stages=(),
        schema=found["schema"],
        fingerprint={"num_rows": num_rows, "source": found["fingerprint"]},
        config=found["given"],
    )
    return run_step(step, first.run.model_copy(update={"engine": "plain"}), first.storage)


def _compared(config: Config) -> dict[str, Any]:
    return {name: value for name, value in resolved(config).items() if name in _COMPARED}


@contextmanager
def _folder(config: Config, keep: str | None) -> Iterator[str]:
    if keep is not None:
        yield keep.rstrip("/")
        return
    if config.run.on_ray(runs_models=True) and config.run.cluster is not None:
        raise ConfigError(
            "a cluster cannot write to a temporary folder of this machine: give --keep with a folder or URL that every "
            "node reaches, or set run.engine: plain."
        )
    with tempfile.TemporaryDirectory(prefix="alignpot-") as folder:
        yield folder


def _scored(config: Config, rows: Dataset) -> tuple[pa.Table, dict[str, float]]:
    """Every row in its order, and rows a second by model, of the time that its workers were busy."""
    scoring = prepare_score(config, rows)
    summary, manifest = score(*scoring)
    dataset = Dataset(scoring[-1].place, manifest)
    table = dataset.table([name for name in dataset.schema.names if name not in _TEXTS], kept_only=False)
    busy = {name: seconds for name, seconds in summary.busy_s.items() if seconds and name.split(".")[0] in _MODELS}
    return table, {name: float(f"{manifest.num_kept / seconds:.4g}") for name, seconds in busy.items()}


def _reasons(dropped: pa.Table) -> dict[str, int]:
    outcomes = zip(*(dropped[name].to_pylist() for name in (schema.DROP_STAGE, schema.DROP_REASON)), strict=True)
    return dict(sorted(Counter(f"{stage}: {reason}" for stage, reason in outcomes).items()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """The rows as one config scores them: margins, NaN without columns, and scores; float64 [num_rows]."""

    explicit: FloatArray
    implicit: FloatArray
    scores: FloatArray

    @classmethod
    def of(cls, table: pa.Table, query: Query) -> "_Side":
        """By a query. Raises as `rank`."""
        source, query = TableSource(table=table), query.on(table.schema)
        columns, none = Reader(source, [query], duplicates=no_positions()).for_query(query)
        missing = np.full(table.num_rows, np.nan)
        explicit, implicit = (columns.quantities.get(quantity, missing) for quantity in (query.signed, query.implicit))
        return cls(explicit=explicit, implicit=implicit, scores=rank(columns, query, none).scores)


def _margins(first: _Side, second: _Side) -> dict[str, Any]:
    """The numbers of _NUMBERS for each margin that both sides have."""
    of_both = {
        schema.MARGIN_EXPLICIT: (first.explicit, second.explicit),
        schema.MARGIN_IMPLICIT: (first.implicit, second.implicit),
    }
    found = {}
    for name, (ours, theirs) in of_both.items():
        known = np.isfinite(ours) & np.isfinite(theirs)
        if np.count_nonzero(known) >= 2:
            found[name] = _numbers(ours[known], theirs[known])
    return found


def _numbers(first: FloatArray, second: FloatArray) -> dict[str, float | None]:
    """Differences are second minus first; in z units each margin is first scaled by its own mean and spread."""
    scaled = [_z_scores(margin) for margin in (first, second)]
    in_z = {} if scaled[0] is None or scaled[1] is None else _of_difference(scaled[1] - scaled[0])
    correlation = spearman(first, second)
    return {
        **_of_difference(second - first),
        **{f"{name}_z": in_z.get(name) for name in ("max", "mean", "rms")},
        "rank_correlation": correlation if np.isfinite(correlation) else None,
        "other_sign": float(np.mean(np.sign(first) != np.sign(second))),
    }


def _of_difference(values: FloatArray) -> dict[str, float]:
    """The largest and the mean of the absolute values, and the root of the mean square."""
    absolute = moments_of(np.abs(values))
    return {
        "max": float(np.abs(values).max()),
        "mean": absolute.mean(),
        "rms": float(np.hypot(absolute.mean(), absolute.std())),
    }


def _z_scores(values: FloatArray) -> FloatArray | None:
    moments = moments_of(values)
    return (values - moments.mean()) / moments.std() if moments.std() > 0 else None


def _selection(query: Query, first: _Side, second: _Side) -> dict[str, Any]:
    """What the metric of the first config would select of the rows, by the scores of each side."""
    ranked = np.isfinite(first.scores) & np.isfinite(second.scores)
    scores = dict(zip(SIDES, (first.scores[ranked], second.scores[ranked]), strict=True))
    found = compare_scores(scores, {}, Fraction(str(query.rule.fraction))).to_dict()
    ours, theirs = SIDES
    return {
        "metric": query.metric.name,
        "fraction": query.rule.fraction,
        "rows": int(np.count_nonzero(ranked)),
        "overlap": found["overlap"][ours][theirs],
        "rank_correlation": found["rank_correlation"][ours][theirs],
        "recall": _recall(scores[ours], scores[theirs], Fraction(str(query.rule.fraction))),
    }


def _recall(first: FloatArray, second: FloatArray, fraction: Fraction) -> dict[str, float]:
    """Of the best rows by the first scores, the share that are among so many times as many by the second ones."""
    num_best = max(1, int(fraction * first.size))
    best, place = np.argsort(-first, kind="stable")[:num_best], np.empty(second.size, dtype=np.int64)
    place[np.argsort(-second, kind="stable")] = np.arange(second.size)
    return {f"{size:g}": float(np.mean(place[best] < size * num_best)) for size in _SUPERSETS}


def render_calibration(found: Mapping[str, Any]) -> str:
    """The comparison as text for the terminal."""
    rows = found["rows"]
    lines = [f"{name}: {shown(first)} | {shown(second)}" for name, first, second in found["differs"]]
    parts = ["\n".join(["first | second", *(lines or ["the two configs say the same"])])]
    counts = [("rows taken", f"{rows['taken']:,}"), ("rows compared", f"{rows['compared']:,}")]
    for side in SIDES:
        counts += [(f"dropped by {side} only: {why}", str(n)) for why, n in rows[f"dropped_by_{side}_only"].items()]
    parts.append(aligned(counts))
    margins = found["margins"]
    table = [(text, *(_text(numbers[name]) for numbers in margins.values())) for name, text in _NUMBERS.items()]
    parts.append(aligned([("second minus first", *margins), *table]))
    selection = found["selection"]
    parts.append(
        aligned([
            (f"best {selection['fraction']:.0%} by metric {selection['metric']}", ""),
            ("overlap: rows in both / rows in either", _text(selection["overlap"])),
            ("rank correlation of the scores", _text(selection["rank_correlation"])),
            *(
                (f"of what first selects, among the best of second, {size} times as many", f"{share:.1%}")
                for size, share in selection["recall"].items()
            ),
        ])
    )  # fmt: skip
    rates = found["rows_per_second"]
    names = dict.fromkeys(name for of_side in rates.values() for name in of_side)
    speed = [(name, *(_text(rates[side].get(name)) for side in SIDES)) for name in names]
    parts.append(aligned([("rows a second", *SIDES), *speed]))
    hours = found["hours_for_a_million_rows"]
    cost = [(name, *(_text(hours[side].get(name)) for side in SIDES)) for name in names]
    parts.append(aligned([("hours of one replica for a million rows", *SIDES), *cost]))
    return "\n\n".join(parts)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

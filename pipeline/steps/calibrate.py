"""The same rows scored by two configs: how far margins, ranks and what would be selected agree, and how fast each is.

For two back ends of one model (torch and vllm, a reward here and behind a server), or for two models. The rows are a
seeded sample of the first config's source. Each side is scored by `score`; nothing else is written.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config, Select, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.sealed import differences
from pipeline.errors import ConfigError, DataError, IntegrityError
from pipeline.metrics import explicit_margin, implicit_margin, moments_of
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.ranks import spearman
from pipeline.selection.columns import read_columns
from pipeline.selection.compare import compare_scores
from pipeline.selection.passes import Threads
from pipeline.selection.ranking import Query, rank, wanted_by
from pipeline.selection.source import TableSource, no_positions
from pipeline.selection.text import aligned
from pipeline.shown import shown
from pipeline.steps.score import prepare_score, score

SIDES: Final = ("first", "second")
_FRACTION: Final = 0.4  # where select has none
_COMPARED: Final = ("policy", "reference", "reward", "tokens", "objective")
_MODELS: Final = ("policy", "reference", "reward")
_OUTCOME: Final = (schema.STATUS, schema.DROP_STAGE, schema.DROP_REASON)
_COLUMNS: Final = (*(field.name for field in (*schema.SCORE_FIELDS, *schema.OUTCOME_FIELDS)), schema.ID)
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

    keep: folder or URL that keeps both scored datasets, so that a call that was stopped goes on. Left out, they go to a
    temporary folder of this machine.

    Raises an AlignpotError if a side cannot be scored, or no two rows have scores of both.
    """
    if first.source is None:
        raise ConfigError("calibrate takes its rows from one source: give a section source instead of sources.")
    limit = min(num_rows, first.source.limit or num_rows)
    rows = {"source": first.source.model_copy(update={"limit": limit}), "sources": ()}
    with _folder(first, keep) as folder:
        scored = [
            _scored(config.model_copy(update={**rows, "scored": f"{folder}/{side}"}))
            for side, config in zip(SIDES, (first, second), strict=True)
        ]
    tables = [table for table, _ in scored]
    if len({table.num_rows for table in tables}) > 1 or not tables[0][schema.ID].equals(tables[1][schema.ID]):
        raise IntegrityError("the two scored datasets hold other rows: the source changed. Run it again.")
    kept = [pc.equal(table[schema.STATUS], schema.KEPT) for table in tables]
    both = pc.and_(*kept)
    pairs = [table.filter(both) for table in tables]
    if pairs[0].num_rows < 2:
        raise DataError(f"{pairs[0].num_rows} of {limit} rows have scores of both; wanted two or more. Raise --rows.")
    lacking = [pc.and_not(theirs, ours) for ours, theirs in (kept, kept[::-1])]
    ours, theirs = (_compared(config) for config in (first, second))
    return {
        "differs": [list(each) for each in differences(ours, theirs)],
        "rows": {
            "taken": tables[0].num_rows,
            "compared": pairs[0].num_rows,
            "dropped_by_both": tables[0].num_rows - pc.sum(pc.or_(*kept), min_count=0).as_py(),
            **{
                f"dropped_by_{side}_only": _reasons(table.filter(rows_of_other))
                for side, table, rows_of_other in zip(SIDES, tables, lacking, strict=True)
            },
        },
        "rows_per_second": {side: rates for side, (_, rates) in zip(SIDES, scored, strict=True)},
        "margins": _margins(pairs, first),
        "selection": _selection(pairs, first),
    }


def _compared(config: Config) -> dict[str, Any]:
    return {name: value for name, value in resolved(config).items() if name in _COMPARED}


@contextmanager
def _folder(config: Config, keep: str | None) -> Iterator[str]:
    if keep is not None:
        yield keep.rstrip("/")
        return
    if config.run.engine == "ray" and config.run.cluster is not None:
        raise ConfigError(
            "a cluster cannot write to a temporary folder of this machine: give --keep with a folder or URL that every "
            "node reaches, or set run.engine: plain."
        )
    with tempfile.TemporaryDirectory(prefix="alignpot-") as folder:
        yield folder


def _scored(config: Config) -> tuple[pa.Table, dict[str, float]]:
    """Every row in the order of the source, and rows a second by model, of the time that its workers were busy."""
    scoring = prepare_score(config)
    summary, manifest = score(*scoring)
    table = Dataset(scoring[-1].place, manifest).table(list(_COLUMNS), kept_only=False)
    busy = {name: summary.busy_s[name] for name in _MODELS if summary.busy_s.get(name)}
    num_rows = manifest.num_kept
    return table, {name: float(f"{num_rows / seconds:.4g}") for name, seconds in busy.items()}


def _reasons(dropped: pa.Table) -> dict[str, int]:
    outcomes = zip(*(dropped[name].to_pylist() for name in _OUTCOME), strict=True)
    return dict(sorted(Counter(f"{stage}: {reason}" for _, stage, reason in outcomes).items()))


def _margins(pairs: Sequence[pa.Table], config: Config) -> dict[str, Any]:
    """The numbers of _NUMBERS for each margin that both sides have."""
    of_both = {
        schema.MARGIN_EXPLICIT: [explicit_margin(table) for table in pairs],
        schema.MARGIN_IMPLICIT: [implicit_margin(table, config.objective) for table in pairs],
    }
    found = {}
    for name, (first, second) in of_both.items():
        known = np.isfinite(first) & np.isfinite(second)
        if np.count_nonzero(known) >= 2:
            found[name] = _numbers(first[known], second[known])
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


def _selection(pairs: Sequence[pa.Table], config: Config) -> dict[str, Any]:
    """What the metric of the first config would select of the rows, by the scores of each side."""
    fraction = _FRACTION if config.select is None or config.select.fraction is None else config.select.fraction
    query = Query(objective=config.objective, metric=config.metric, rule=Select(fraction=fraction))
    scores = {}
    for side, table in zip(SIDES, pairs, strict=True):
        source = TableSource(table=table)
        scores[side] = rank(read_columns(source, wanted_by([query], source), Threads()), query, no_positions()).scores
    ranked = np.logical_and.reduce([np.isfinite(values) for values in scores.values()])
    found = compare_scores({side: values[ranked] for side, values in scores.items()}, {}, Fraction(str(fraction)))
    first, second = SIDES
    return {
        "metric": config.metric.name,
        "fraction": fraction,
        "rows": int(np.count_nonzero(ranked)),
        "overlap": found.to_dict()["overlap"][first][second],
        "rank_correlation": found.to_dict()["rank_correlation"][first][second],
    }


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
        ])
    )  # fmt: skip
    rates = found["rows_per_second"]
    names = [name for name in _MODELS if any(name in of_side for of_side in rates.values())]
    speed = [(name, *(_text(rates[side].get(name)) for side in SIDES)) for name in names]
    parts.append(aligned([("rows a second", *SIDES), *speed]))
    return "\n\n".join(parts)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

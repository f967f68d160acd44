"""What the commands do, as calls: on data frames, datasets, Arrow tables, lists of dicts, paths and URLs.

    from pipeline import compare, potential, read_pairs, score, select
    scored = score(rows, policy="HuggingFaceTB/SmolLM2-135M-Instruct", reward="columns", objective="simpo")
    subset = select(scored, fraction=0.4, weight="auto", per_prompt=1)
    gaps = potential(scored, objective="cpo", beta=0.1)

Keyword arguments are the keys of the config (see `alignpot config --reference`). Rows that are in memory are scored in
this process, with their files in a temporary folder; give `path` to keep the scored dataset, and to go on with it after
a stop.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import frames, schema
from pipeline.config import Config, Metric, Objective, Output, Source, Storage, parse_config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError
from pipeline.metrics.columns import FloatArray
from pipeline.selection.columns import read_columns
from pipeline.selection.compare import Comparison
from pipeline.selection.passes import Threads
from pipeline.selection.ranking import Query, rank, wanted_by
from pipeline.selection.report import render, summarise
from pipeline.selection.selection import Found, select_many
from pipeline.selection.source import Source as ScoredRows
from pipeline.selection.source import TableSource, no_positions

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl

_KEYS: Final = {name: {*kind.model_fields} - {"name"} for name, kind in (("objective", Objective), ("metric", Metric))}
_ALL: Final = 1.0  # the fraction of calls that select nothing


class Rows:
    """Rows in the order of their source, ready to be taken over by other libraries."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self.to_arrow().num_rows)

    def to_arrow(self) -> pa.Table:
        """As an Arrow table."""
        return self._table

    def to_datasets(self) -> "datasets.Dataset":
        """As a Hugging Face dataset."""
        return frames.to_datasets(self.to_arrow())

    def to_pandas(self) -> "pd.DataFrame":
        """As a pandas data frame."""
        return frames.to_pandas(self.to_arrow())

    def to_polars(self) -> "pl.DataFrame":
        """As a polars data frame."""
        return frames.to_polars(self.to_arrow())


class Pairs(Rows):
    """Preference pairs: id, prompt, chosen, rejected as message lists. `dropped`: left-out rows by stage and reason."""

    def __init__(self, table: pa.Table) -> None:
        is_kept = pc.equal(table[schema.STATUS], schema.KEPT)
        left_out = table.filter(pc.invert(is_kept)).select([schema.DROP_STAGE, schema.DROP_REASON]).to_pylist()
        self.dropped: dict[str, int] = {}
        for row in left_out:
            name = f"{row[schema.DROP_STAGE]}: {row[schema.DROP_REASON]}"
            self.dropped[name] = self.dropped.get(name, 0) + 1
        internal = {schema.CONTENT_DIGEST, *(field.name for field in (*schema.SCORE_FIELDS, *schema.OUTCOME_FIELDS))}
        super().__init__(table.filter(is_kept).drop_columns([name for name in table.column_names if name in internal]))


class Scored(Rows):
    """A scored dataset: the kept rows with their rewards, log-probs and token counts.

    path: where it lies. dropped: left-out rows by stage and reason.
    """

    def __init__(self, config: Config, folder: "tempfile.TemporaryDirectory[str] | None" = None) -> None:
        self.dataset = Dataset.open(Place.open(config.scored, config.storage))
        self.config = config
        self.path = config.scored
        self.dropped = {
            f"{stage}: {reason}": count
            for stage, reasons in self.dataset.manifest.drops.items()
            for reason, count in reasons.items()
        }
        self._folder = folder

    def __len__(self) -> int:
        return self.dataset.num_kept

    def to_arrow(self) -> pa.Table:
        """All kept rows in memory, as an Arrow table."""
        return self.dataset.table()


class Subset(Rows):
    """The rows that a selection keeps, with margin_explicit, margin_implicit and potential. `report`: it in numbers."""

    def __init__(self, source: ScoredRows, found: Found, owner: object = None) -> None:
        self._source, self._found, self._owner = source, found, owner
        self.report = summarise(found, source)

    def __len__(self) -> int:
        return self._found.selection.k

    def __str__(self) -> str:
        return render(self.report)

    def to_arrow(self) -> pa.Table:
        """The kept rows as an Arrow table."""
        from pipeline.steps.select import kept_columns

        return pa.concat_tables(self._found.selection.rows(self._source, kept_columns(self._source, slim=False)))

    def write(self, path: str | Path, **output: Any) -> None:
        """Write the subset as `alignpot select` does: `path` and further keys of the output section, and `storage`."""
        from pipeline.steps.select import write_found

        storage = Storage.model_validate(output.pop("storage", {}))
        section = Output.model_validate({"path": str(path), **output})
        write_found(self._found, self._source, section, Place.open(section.path, storage))


def read_pairs(data: Any, *, storage: Mapping[str, Any] | None = None, **source: Any) -> Pairs:
    """Preference data in any known format as pairs.

    data: a path or URL, a datasets.Dataset, a data frame, an Arrow table or a list of dicts. source: keys of the source
    section, such as format, id_column, passthrough.

    Raises:
        AlignpotError: no format fits, or the data cannot be read.
    """
    from pipeline.sources.reader import read_all

    with tempfile.TemporaryDirectory(prefix="alignpot-") as folder:
        section = Source.model_validate({"path": _path_of(data, Path(folder)), **source})
        place = Place.open(section.path, Storage.model_validate(storage or {}))
        return Pairs(read_all(place.fs, place.root, section))


def score(
    data: Any,
    *,
    policy: Any = None,
    reference: Any = None,
    reward: Any = None,
    path: str | Path | None = None,
    engine: str = "plain",
    **sections: Any,
) -> Scored:
    """Score preference data by a policy, a reference and a reward model.

    data: as for `read_pairs`. policy, reference: the name or folder of a model, "columns" for log-probs that the rows
    hold, a section of the config as a dict, or a model of transformers that is loaded already (a copy is saved to a
    temporary folder; the tokenizer is found by the model's name). reward: the same for a classifier; "columns" takes
    the rewards that the rows hold. path: keeps the scored dataset there; a call with the same arguments goes on with
    it. engine: plain, in this process, or ray. sections: further sections of the config as dicts (source, tokens, run,
    storage), and objective as a name or dict.

    Raises:
        AlignpotError: what is wrong with the arguments, the data or a model.
    """
    from pipeline.steps.score import check_dropped, prepare_score
    from pipeline.steps.score import score as run_score

    folder = tempfile.TemporaryDirectory(prefix="alignpot-")
    work = Path(folder.name)
    given = {"policy": policy, "reference": reference, "reward": reward}
    models = {role: _model_section(model, role, work / role) for role, model in given.items() if model is not None}
    metric = "potential" if policy is not None and reward is not None else "explicit" if policy is None else "implicit"
    config = parse_config({
        "source": {"path": _path_of(data, work / "rows"), **sections.get("source", {})},
        **models,
        "scored": str(path or work / "scored"),
        "objective": _named(sections.get("objective", {})),
        "metric": {"name": metric},
        "run": {"engine": engine, **sections.get("run", {})},
        **{name: section for name, section in sections.items() if name not in ("source", "run", "objective")},
    })  # fmt: skip
    _, manifest = run_score(*prepare_score(config))
    check_dropped(config, manifest)
    return Scored(config, folder)


def select(scored: Any, *, objective: Any = None, metric: Any = None, **keys: Any) -> Subset:
    """Keep the pairs of the highest score.

    scored: what `score` gave, the path or URL of a scored dataset, or a frame or table with its columns. objective,
    metric: a name or a section as a dict; the objective of the run that scored is the default. keys: of the sections
    select (fraction, k, per_prompt, ...), metric (weight, normalise, ...) and objective (beta, ...).

    Raises:
        AlignpotError: what is wrong with the keys or the scores.
    """
    source, config = _scored_rows(scored, keys.pop("storage", None))
    [found] = select_many(source, [_query(config, objective, metric, keys)])
    return Subset(source, found, owner=scored)


def potential(scored: Any, *, objective: Any = None, metric: Any = None, **keys: Any) -> FloatArray:
    """The score of every row, in the order of the rows: float64 [num_rows], NaN where a row has none.

    By default the alignment potential; arguments as for `select`. No files are written.

    Raises:
        AlignpotError: what is wrong with the keys or the scores.
    """
    source, config = _scored_rows(scored, keys.pop("storage", None))
    query = _query(config, objective, metric, {"fraction": _ALL, **keys})
    columns = read_columns(source, wanted_by([query], source), Threads())
    scores = rank(columns, query, no_positions()).scores
    if isinstance(source, Dataset) or isinstance(scored, Rows):
        return scores
    table = frames.to_table(scored)
    if table.num_rows == scores.size:
        return scores
    every = np.full(table.num_rows, np.nan)
    every[pc.equal(table[schema.STATUS], schema.KEPT).to_numpy().astype(np.bool_)] = scores
    return every


def compare(
    scored: Any,
    *,
    metrics: Sequence[str | Mapping[str, Any]] = (),
    fractions: Sequence[float] = (0.1, 0.4),
    objective: str | Mapping[str, Any] = "",
    storage: Mapping[str, Any] | None = None,
) -> Comparison:
    """How far metrics agree: overlap of what they select, rank correlation, contradiction.

    scored: as for `select`. metrics: names, `name:key=value,...` or sections as dicts; default: those that can be
    computed. fractions: how much each selects. objective: as a metric is given; default: that of the run that scored.

    Raises:
        AlignpotError: what is wrong with the keys or the scores.
    """
    from pipeline.steps.compare import compare_rows, objective_of

    source, config = _scored_rows(scored, storage)
    return compare_rows(source, objective_of(objective, config), metrics, fractions)


def export(subset: str | Path, to: str, path: str | Path, **options: Any) -> str:
    """Write a subset on disk or object storage in the format of a trainer; returns what was written, in words.

    options: slim, drop_unfit and storage.

    Raises:
        AlignpotError: there is no such subset, or pairs do not fit the format.
    """
    from pipeline.exports.export import export_subset

    storage = Storage.model_validate(options.pop("storage", {}))
    return export_subset(Place.open(str(subset), storage), to, Place.open(str(path), storage), **options)


def self_play(config: Mapping[str, Any]) -> Iterator[str]:
    """Rounds of self-play by a config as a dict; yields what the command prints."""
    from pipeline.config import parse_self_play
    from pipeline.selfplay.rounds import self_play as play

    return play(parse_self_play(dict(config)))


def _path_of(data: Any, folder: Path) -> str:
    """The path of the data; rows in memory are written to `folder` first."""
    if isinstance(data, str | Path):
        return str(data)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(frames.to_table(data).replace_schema_metadata(None), folder / "rows.parquet")
    return str(folder)


def _model_section(model: Any, role: str, folder: Path) -> Mapping[str, Any]:
    base = {"backend": "classifier"} if role == "reward" else {}
    if isinstance(model, Mapping):
        return model
    if isinstance(model, str) and model == "columns":
        return {"backend": "columns"}
    if isinstance(model, str | Path):
        return {**base, "model": str(model)}
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(
            f"a model is given as {type(model).__qualname__}; wanted a name, a folder, a section as a dict, or a model "
            "of transformers."
        )
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.name_or_path).save_pretrained(folder)
    return {**base, "model": str(folder), "dtype": str(model.dtype).removeprefix("torch.")}


def _scored_rows(scored: Any, storage: Mapping[str, Any] | None = None) -> tuple[ScoredRows, Mapping[str, Any]]:
    """The kept rows, and the config that they were scored with, as far as it is known."""
    if isinstance(scored, str | Path):
        dataset = Dataset.open(Place.open(str(scored), Storage.model_validate(storage or {})))
        return dataset, dataset.manifest.config
    if isinstance(scored, Scored):
        return scored.dataset, scored.dataset.manifest.config
    table = scored.to_arrow() if isinstance(scored, Rows) else frames.to_table(scored)
    if schema.ID not in table.column_names:
        table = table.append_column(schema.ID, pa.array([f"row-{i:012d}" for i in range(table.num_rows)]))
    if schema.STATUS in table.column_names:
        table = table.filter(pc.equal(table[schema.STATUS], schema.KEPT))
    return TableSource(table=table), {}


def _query(scored_config: Mapping[str, Any], objective: Any, metric: Any, keys: Mapping[str, Any]) -> Query:
    known = scored_config.get("objective") or {}
    named: dict[str, dict[str, Any]] = {
        "objective": _named(objective or known),
        "metric": _named(metric or {}),
        "select": {},
    }
    for key, value in keys.items():
        section = next((name for name, its_keys in _KEYS.items() if key in its_keys), "select")
        named[section] = {**named[section], key: value}
    config = parse_config({"scored": "scored", "output": {"path": "subset"}, **named}, where="the call")
    assert config.select is not None  # noqa: S101 - it was given
    return Query(objective=config.objective, metric=config.metric, rule=config.select)


def _named(section: Any) -> dict[str, Any]:
    return {"name": section} if isinstance(section, str) else dict(section)

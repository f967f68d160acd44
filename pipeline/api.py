"""What the commands do, as calls: on data frames, datasets, Arrow tables, lists of dicts, paths and URLs.

    from pipeline import compare, potential, read_pairs, score, select
    scored = score(rows, policy="HuggingFaceTB/SmolLM2-135M-Instruct", reward="columns", objective="simpo")
    subset = select(scored, fraction=0.4, weight="auto", per_prompt=1)
    gaps = potential(scored, objective="cpo", beta=0.1)

Keyword arguments are the keys of the config (see `alignpot config --reference`). Rows in memory are scored in this
process, with their files in a temporary folder; give `path` to keep the scored dataset, and to go on after a stop.
Every function raises an AlignpotError that says what is wrong with the arguments, the data or a model.
"""

import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import Config, Metric, Objective, Output, Select, Source, Storage, parse_config, resolved
from pipeline.config.load import parse
from pipeline.data.benchmarks import read_benchmarks
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError, SchemaError
from pipeline.frames import Rows, to_table
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.observers.facts import tell_copy
from pipeline.observers.observed import observed
from pipeline.selection.columns import read_columns
from pipeline.selection.passes import Threads
from pipeline.selection.ranking import Query, rank, wanted_by
from pipeline.selection.report import render, summarise
from pipeline.selection.selection import Found
from pipeline.selection.source import Source as ScoredRows
from pipeline.selection.source import TableSource, no_positions

if TYPE_CHECKING:
    import datasets

    from pipeline.selection.compare import Comparison

_KEYS: Final = {name: {*kind.model_fields} - {"name"} for name, kind in (("objective", Objective), ("metric", Metric))}
_EVERY_ROW: Final = 1.0
_INTERNAL: Final = {schema.CONTENT_DIGEST, *(field.name for field in (*schema.SCORE_FIELDS, *schema.OUTCOME_FIELDS))}


class Pairs(Rows):
    """Preference pairs: id, prompt, chosen, rejected as message lists. `dropped`: left-out rows by stage and reason."""

    def __init__(self, table: pa.Table) -> None:
        is_kept = pc.equal(table[schema.STATUS], schema.KEPT)
        left_out = table.filter(pc.invert(is_kept)).select([schema.DROP_STAGE, schema.DROP_REASON]).to_pylist()
        self.dropped = dict(Counter(": ".join(row.values()) for row in left_out))
        super().__init__(table.filter(is_kept).drop_columns([name for name in table.column_names if name in _INTERNAL]))


class Scored(Rows):
    """A scored dataset: the kept rows with their rewards, log-probs and token counts.

    path: where it lies; temporary files go with this object. dropped: left-out rows by stage and reason.
    """

    def __init__(self, config: Config, files: ExitStack) -> None:
        self.dataset = Dataset.open(Place.open(config.scored, config.storage))
        self.config = config
        self.path = config.scored
        self.dropped = self.dataset.manifest.drops_by_reason
        weakref.finalize(self, files.close)

    def __len__(self) -> int:
        return self.dataset.num_kept

    def to_arrow(self) -> pa.Table:
        """All kept rows in memory, as an Arrow table."""
        return self.dataset.table()


class Subset(Rows):
    """The rows that a selection keeps, with margin_explicit, margin_implicit and potential.

    Where select.split holds rows out, `to_datasets` gives every split, and tables have a column `split`.
    """

    def __init__(self, source: ScoredRows, found: Found, former: Mapping[str, Any] | None, owner: object) -> None:
        self._source, self._found, self._former = source, found, former
        self._owner = owner  # of the files that are read

    @cached_property
    def report(self) -> dict[str, Any]:
        """What was kept, in numbers: as `report.json` of a written subset."""
        return summarise(self._found, self._source)

    def __len__(self) -> int:
        return self._found.selection.k

    def __str__(self) -> str:
        return render(self.report)

    def to_arrow(self) -> pa.Table:
        """The kept rows as an Arrow table; with splits, one after another, and a column `split`."""
        splits = self._split_tables()
        if len(splits) == 1:
            return splits[schema.TRAIN]
        if schema.SPLIT in splits[schema.TRAIN].column_names:
            raise SchemaError("the rows have a column split of their own. Use to_datasets(), or write().")
        return pa.concat_tables(
            table.append_column(schema.SPLIT, pa.array([split] * table.num_rows)) for split, table in splits.items()
        )

    def to_datasets(self) -> "datasets.Dataset | datasets.DatasetDict":
        """As a Hugging Face dataset; as a DatasetDict where select.split is set."""
        import datasets

        splits = {
            name: datasets.Dataset(datasets.table.InMemoryTable(table)) for name, table in self._split_tables().items()
        }
        return datasets.DatasetDict(splits) if len(splits) > 1 else splits[schema.TRAIN]

    def _split_tables(self) -> dict[str, pa.Table]:
        from pipeline.steps.select import kept_columns

        selection, columns = self._found.selection, kept_columns(self._source, slim=False)
        return {
            name: pa.concat_tables(selection.rows(self._source, columns, split=name)) for name in selection.num_by_split
        }

    def write(self, path: str | Path, **output: Any) -> None:
        """Write the subset as `alignpot select` does. output: further keys of the output section, and `storage`."""
        from pipeline.steps.select import write_found
        from pipeline.steps.told import tell_found, tell_selected

        storage = output.pop("storage", None)
        section = parse(Output, {"path": str(path), **output}, "the call")
        source, place = self._source, _place(path, storage)
        with observed(
            "select", str(path), section.model_dump(mode="json"), lineage=isinstance(source, Dataset)
        ) as told:
            told.add(tell_found, source, self._found, section)
            told.begin()
            write_found(self._found, source, self._former, section, place)
            told.add(tell_selected, section, place, self.report)
        if section.hub is not None:
            push(path, section.hub, storage=storage)


def read_pairs(data: Any, *, storage: Mapping[str, Any] | None = None, **source: Any) -> Pairs:
    """Preference data in any known format as pairs.

    data: a path or URL, a datasets.Dataset, a data frame, an Arrow table or a list of dicts. source: keys of the source
    section, such as format, id_column, passthrough.
    """
    from pipeline.sources.open import read_all

    with tempfile.TemporaryDirectory(prefix="alignpot-") as folder:
        section = parse(Source, {"path": _path_of(data, Path(folder)), **source}, "the call")
        place = Place.of_source(section.path, _storage(storage))
        return Pairs(read_all(place.fs, place.root, section, read_benchmarks(section, _storage(storage))))


def score(
    data: Any = None,
    *,
    policy: Any = None,
    reference: Any = None,
    reward: Any = None,
    path: str | Path | None = None,
    engine: str = "plain",
    **sections: Any,
) -> Scored:
    """Score preference data by a policy, a reference and a reward model.

    data: as for `read_pairs`; or none, and `sources` as a list of dicts such as `{"name": "a", "path": data}`. policy,
    reference: the name or folder of a model, "columns" for log-probs that the rows hold, a section of the config as a
    dict, or a model of transformers that is loaded already (a copy is saved to a temporary folder; the tokenizer is
    found by the model's name). reward: the same for a classifier; "columns" takes the rewards that the rows hold. path:
    keeps the scored dataset there; a call with the same arguments goes on with it. engine: plain, in this process, or
    ray. sections: further sections of the config as dicts (source, tokens, run, storage), and objective as a name or
    dict.
    """
    from pipeline.steps.score import check_dropped, prepare_score
    from pipeline.steps.score import score as run_score
    from pipeline.steps.told import tell_scored, tell_scoring

    given = {"policy": policy, "reference": reference, "reward": reward}
    metric = "potential" if policy is not None and reward is not None else "explicit" if policy is None else "implicit"
    with ExitStack() as files:
        work = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="alignpot-")))
        named = [
            {**source, "path": _path_of(source.get("path"), work / f"rows-{index}")}
            for index, source in enumerate(sections.pop("sources", ()))
        ]
        read: dict[str, Any] = {"sources": named} if named else {}
        if data is not None or not named:
            read["source"] = {"path": _path_of(data, work / "rows"), **sections.pop("source", {})}
        config = parse_config({
            **read,
            **{role: _model_section(model, role, work / role) for role, model in given.items() if model is not None},
            "scored": str(path or work / "scored"),
            "objective": _named(sections.pop("objective", {})),
            "metric": {"name": metric},
            "run": {"engine": engine, **sections.pop("run", {})},
            **sections,
        })  # fmt: skip
        with observed("score", config.scored, resolved(config), config.run.track, lineage=path is not None) as told:
            scoring = prepare_score(config)
            told.add(tell_scoring, *scoring)
            told.begin()
            summary, manifest = run_score(*scoring)
            told.add(tell_scored, summary, manifest)
            check_dropped(config, manifest)
        return Scored(config, files.pop_all())


def select(scored: Any, *, objective: Any = None, metric: Any = None, **keys: Any) -> Subset:
    """Keep the pairs of the highest score.

    scored: what `score` gave, the path or URL of a scored dataset, or a frame or table with its columns. objective,
    metric: a name or a section as a dict; the objective of the run that scored is the default. keys: of the sections
    select (fraction, k, per_prompt, ...), metric (weight, normalise, ...) and objective (beta, ...).
    """
    from pipeline.steps.select import select_rows

    storage = keys.pop("storage", None)
    source, config, _ = _scored_rows(scored, storage)
    found, former = select_rows(source, _query(config, objective, metric, keys), _storage(storage))
    return Subset(source, found, former, owner=scored)


def potential(scored: Any, *, objective: Any = None, metric: Any = None, **keys: Any) -> FloatArray:
    """The score of every row, in the order of the rows: float64 [num_rows], NaN where a row has none.

    By default the alignment potential; arguments as for `select`. No files are written.
    """
    source, config, is_kept = _scored_rows(scored, keys.pop("storage", None))
    query = _query(config, objective, metric, {"fraction": _EVERY_ROW, **keys})
    columns = read_columns(source, wanted_by([query], source), Threads())
    scores = rank(columns, query, no_positions()).scores
    if is_kept is None:
        return scores
    of_every_row = np.full(is_kept.size, np.nan)
    of_every_row[is_kept] = scores
    return of_every_row


def compare(
    scored: Any,
    *,
    metrics: Sequence[str | Mapping[str, Any]] = (),
    fractions: Sequence[float] = (0.1, 0.4),
    objective: str | Mapping[str, Any] = "",
    storage: Mapping[str, Any] | None = None,
) -> "Comparison":
    """How far metrics agree: overlap of what they select, rank correlation, contradiction.

    scored: as for `select`. metrics: names, `name:key=value,...` or sections as dicts; default: those that can be
    computed. fractions: how much each selects. objective: as a metric is given; default: that of the run that scored.
    """
    from pipeline.steps.compare import compare_rows, objective_of

    source, config, _ = _scored_rows(scored, storage)
    return compare_rows(source, objective_of(objective, config), metrics, fractions)


def audit(
    scored: Any,
    *,
    objective: str | Mapping[str, Any] = "",
    above: float = 0.5,
    text: bool = False,
    storage: Mapping[str, Any] | Storage | None = None,
) -> Rows:
    """The pairs whose label is likely wrong, most likely first: id, probability, reasons and margins.

    scored: as for `select`. objective: gives the implicit margin; default: that of the run that scored. above: lowest
    probability of a wrong label. text: also prompt, chosen and rejected.
    """
    from pipeline.selection.selection import select_many
    from pipeline.selection.view import View
    from pipeline.selection.wrong_labels import suspicious_pairs
    from pipeline.steps.compare import objective_of

    source, config, _ = _scored_rows(scored, storage)
    # The metric random ranks every row, also those without one of the margins.
    metric, rule = Metric(name="random"), Select(fraction=_EVERY_ROW)
    query = Query(objective=objective_of(objective, config), metric=metric, rule=rule)
    [found] = select_many(source, [query])
    return Rows(suspicious_pairs(View.of(found), source, above=above, text=text))


def export(subset: str | Path, to: str, path: str | Path, **options: Any) -> str:
    """Write a subset on disk or object storage in the format of a trainer; returns what was written, in words.

    options: slim, drop_unfit and storage.
    """
    from pipeline.exports.export import export_subset

    storage = options.pop("storage", None)
    places = _place(subset, storage), _place(path, storage)
    with observed("export", str(path), {"to": to, **options}) as told:
        told.add(tell_copy, str(subset), places[0])
        told.begin()
        text = export_subset(places[0], to, places[1], **options)
        told.add(tell_copy, str(subset), *places)
    return text


def push(
    subset: str | Path, repo: str, *, public: bool = False, storage: Mapping[str, Any] | Storage | None = None
) -> str:
    """Push a subset to the Hugging Face Hub as ORG/NAME, in one commit, unless it is there; returns what was done.

    public: a dataset that does not exist yet is for everybody to see. The token is that of huggingface_hub.
    """
    from pipeline.exports.hub import push_subset

    place = _place(subset, storage)
    with observed("push", f"hf://datasets/{repo}", {"repo": repo}) as told:
        told.add(tell_copy, str(subset), place)
        told.begin()
        return push_subset(place, repo, public=public)


def self_play(config: Mapping[str, Any]) -> Iterator[str]:
    """Rounds of self-play by a config as a dict; yields what the command prints."""
    from pipeline.config import parse_self_play
    from pipeline.selfplay.rounds import self_play as play

    return play(parse_self_play(config))


def _storage(given: Mapping[str, Any] | Storage | None) -> Storage:
    return given if isinstance(given, Storage) else parse(Storage, given or {}, "storage of the call")


def _place(url: str | Path, storage: Mapping[str, Any] | Storage | None) -> Place:
    return Place.open(str(url), _storage(storage))


def _path_of(data: Any, folder: Path) -> str:
    """The path of the data; rows in memory are written to `folder` first."""
    if isinstance(data, str | Path):
        return str(data)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(data).replace_schema_metadata(None), folder / "rows.parquet")
    return str(folder)


def _model_section(model: Any, role: str, folder: Path) -> Mapping[str, Any]:
    base = {"backend": "classifier"} if role == "reward" else {}
    if isinstance(model, Mapping):
        return model
    if isinstance(model, str | Path):
        return {"backend": "columns"} if model == "columns" else {**base, "model": str(model)}
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(
            f"a model is given as {type(model).__qualname__}; wanted a name, a folder, a section as a dict, or a model "
            "of transformers."
        )
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.name_or_path).save_pretrained(folder)
    return {**base, "model": str(folder), "dtype": str(model.dtype).removeprefix("torch.")}


def _scored_rows(
    scored: Any, storage: Mapping[str, Any] | Storage | None
) -> tuple[ScoredRows, Mapping[str, Any], BoolArray | None]:
    """The kept rows; the config that they were scored with, if known; and which rows of a table or frame are kept."""
    if isinstance(scored, str | Path | Scored):
        dataset = scored.dataset if isinstance(scored, Scored) else Dataset.open(_place(scored, storage))
        return dataset, dataset.manifest.config, None
    table = scored.to_arrow() if isinstance(scored, Rows) else to_table(scored)
    if schema.ID not in table.column_names:
        table = table.append_column(schema.ID, pa.array([f"row-{i:012d}" for i in range(table.num_rows)]))
    if schema.STATUS not in table.column_names:
        return TableSource(table=table), {}, None
    is_kept = pc.equal(table[schema.STATUS], schema.KEPT).fill_null(fill_value=False)
    return TableSource(table=table.filter(is_kept)), {}, is_kept.to_numpy().astype(np.bool_)


def _query(scored_config: Mapping[str, Any], objective: Any, metric: Any, keys: Mapping[str, Any]) -> Query:
    sections: dict[str, dict[str, Any]] = {
        "objective": _named(objective or scored_config.get("objective") or {}),
        "metric": _named(metric or {}),
        "select": {},
    }
    for key, value in keys.items():
        sections[next((name for name, of_section in _KEYS.items() if key in of_section), "select")][key] = value
    config = parse_config({"scored": "scored", "output": {"path": "subset"}, **sections}, where="the call")
    assert config.select is not None  # noqa: S101 - it was given
    return Query(objective=config.objective, metric=config.metric, rule=config.select)


def _named(section: Any) -> dict[str, Any]:
    return {"name": section} if isinstance(section, str) else dict(section)

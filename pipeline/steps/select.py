"""Select subsets of a scored dataset: narrow columns into memory, rules there, then tasks that write files.

    check the output -> read narrow columns -> choose rows -> report -> files -> _SUCCESS.json

Text is read for the chosen rows alone. Reading and writing are tasks over parts and files. Threads of this machine or a
Ray cluster run them, with the same results and bytes. The same config, run again, finds its subsets and does nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa

from pipeline import config as settings
from pipeline import schema
from pipeline.config import Config, Output, Storage, resolved
from pipeline.data.commit import check_writable
from pipeline.data.dataset import Dataset
from pipeline.data.files import PAGE_FILE, REPORT_FILE, file_shards, finish_files, split_of, with_layout, write_files
from pipeline.data.manifest import SUBSET, File, Manifest
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run, check_claim
from pipeline.data.sealed import differences, digest, fingerprint_digest, read_sealed, sealed
from pipeline.errors import ConfigError, FingerprintError, SourceError
from pipeline.report import about, report_page
from pipeline.selection.columns import check_group_type
from pipeline.selection.former import apply_former, former_fitted, former_rule
from pipeline.selection.partition import Partition, check_partition, partition
from pipeline.selection.passes import Passes, Threads
from pipeline.selection.ranking import Query, rank
from pipeline.selection.report import summarise
from pipeline.selection.rules import choose, num_selected
from pipeline.selection.selection import Found, Reader, Selection, found
from pipeline.selection.source import Source
from pipeline.shown import shown_path

_SCORING: Final = ("policy", "reference", "reward", "tokens")
_SLIM: Final = (schema.PROMPT, schema.CHOSEN, schema.REJECTED)
_INTERNAL: Final = (schema.CONTENT_DIGEST, *(field.name for field in (*schema.OUTCOME_FIELDS, *schema.LAZY_FIELDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRun:
    """A checked selection: what it looks for and where the subset goes. former: the selection that it takes over."""

    config: Config
    query: Query
    output: Output
    place: Place
    plan: Plan
    former: Mapping[str, Any] | None = None

    def where(self) -> str:
        """Where the subset lies and how to load it."""
        path, held_out = shown_path(self.output.path.rstrip("/")), self.query.rule.split
        lines, folder = [f"subset: {path}"], "" if self.output.partition_by is None else "*/"
        files = f'"{path}/parquet/{folder}*.parquet"'
        if held_out is not None:
            names = [schema.TRAIN, *held_out]
            files = "{" + ", ".join(f'"{name}": "{path}/parquet/{folder}{name}-*.parquet"' for name in names) + "}"
        which = "" if held_out is not None else '["train"]'
        if "hf" in self.output.formats:
            lines.append(f'  datasets.load_from_disk("{path}/hf"){which}')
        if "parquet" in self.output.formats:
            lines.append(f'  datasets.load_dataset("parquet", data_files={files}){which}')
        lines.append(f"  open in a browser: {path}/{PAGE_FILE}")
        return "\n".join(lines)


def prepare_select(config: Config, plan: Plan | None = None) -> list[SelectRun]:
    """Check the outputs and what may be there already; one run, or one for each variant of a sweep.

    plan: of the scored dataset, where it is not complete yet; left out, the scored dataset must be complete.

    Raises an AlignpotError if anything is wrong, before a row is read.
    """
    found = plan if plan is not None else open_scored(config).manifest
    return [_prepare(variant, found.fingerprint, found.schema, plan) for variant in config.variants()]


def _prepare(config: Config, scored: Mapping[str, Any], columns: pa.Schema, plan: Plan | None) -> SelectRun:
    if config.select is None or config.output is None:
        raise ConfigError("select needs a select section (fraction or k) and an output section (path); add them.")
    if config.output.partition_by is not None:
        check_partition(config.output.partition_by, columns)
    place = Place.open(config.output.path, config.storage)
    if Dataset.find(place, SUBSET) is None:
        check_writable(place)
    query = Query(objective=config.objective, metric=config.metric, rule=config.select)
    query, former = _with_former(query.on(columns), config.storage, scored)
    query = query.on(columns)
    rule = query.rule
    fingerprint = _fingerprint(scored, query, config.output, former)
    if plan is not None and rule.group_by is not None:
        remedy = "Name it in source.passthrough."
        schema.require_columns(plan.schema, [rule.group_by], where="select.group_by", remedy=remedy)
        check_group_type(rule.group_by, plan.schema.field(rule.group_by).type)
    if rule.weights and schema.WEIGHT in columns.names:
        raise ConfigError(
            f"select.weights writes a column {schema.WEIGHT}, and the scored rows have one. Leave it out of "
            "source.passthrough, or rename it in the source."
        )
    if plan is not None and former is None:
        num_selected(rule, sum(shard["num_rows"] for shard in plan.shards))
    check_claim(place, SUBSET, fingerprint)
    subset = Plan(kind=SUBSET, fingerprint=fingerprint, config=resolved(config))
    return SelectRun(config=config, query=query, output=config.output, place=place, plan=subset, former=former)


def _fingerprint(
    scored: Mapping[str, Any], query: Query, output: Output, former: Mapping[str, Any] | None
) -> dict[str, Any]:
    # The bounds in a lazily scored dataset decide nothing.
    scored = {name: value for name, value in scored.items() if name != "bounds"}
    return {
        "scored": fingerprint_digest(scored),
        "objective": query.objective.fingerprint(),
        "metric": query.metric.fingerprint(),
        "select": query.rule.fingerprint(),
        "stats_from": None if former is None else fingerprint_digest(former),
        **output.fingerprint(),
    }


def select_subsets(runs: Sequence[SelectRun]) -> list[dict[str, Any]]:
    """Write the subsets, where they are not there already, and return their reports.

    Raises an AlignpotError if the scored dataset does not allow a selection, or is damaged.
    """
    pending = [run for run in runs if Dataset.find(run.place, SUBSET) is None]
    if pending:
        dataset = open_scored(pending[0].config)
        select = pending[0].config.select
        with _passes("auto" if select is None else select.engine, pending[0].config.run) as passes:
            reader = Reader(dataset, [run.query for run in pending], passes)
            for run in sorted(pending, key=lambda run: run.query.rule.labels):
                chosen = _found(dataset, run.query, run.former, reader)
                _write(passes, dataset, chosen, run.place, run.output, run.plan)
    return [_report(run.place) for run in runs]


def select_rows(source: Source, query: Query, storage: Storage) -> tuple[Found, Mapping[str, Any] | None]:
    """The selection that a command would write, and the former one whose rule it takes over, if any.

    Raises a ConfigError if select.stats_from is asked for rows whose models are not known.
    """
    former, query = None, query.on(source.schema)
    if query.rule.stats_from is not None:
        if not isinstance(source, Dataset):
            raise ConfigError(
                "select.stats_from holds for scores of the same models, and rows in memory do not name theirs. Give "
                "what `score` gave, or the path of a scored dataset."
            )
        query, former = _with_former(query, storage, source.manifest.fingerprint)
        query = query.on(source.schema)
    # A cluster is joined only if the call asks for it.
    engine = "ray" if query.rule.engine == "ray" else "plain"
    with _passes(engine, settings.Run()) as passes:
        return _found(source, query, former, Reader(source, [query], passes)), former


def _found(source: Source, query: Query, former: Mapping[str, Any] | None, reader: Reader) -> Found:
    columns, duplicates = reader.for_query(query, None if former is None else former_fitted(former))
    if former is not None:
        return apply_former(source, columns, duplicates, former, query)
    ranking = rank(columns, query, duplicates)
    return found(columns, ranking, choose(source, columns, ranking))


@contextmanager
def _passes(engine: str, run: settings.Run) -> Iterator[Passes]:
    """What reads and writes: threads of this machine, or tasks of a Ray cluster.

    `select.engine: auto` takes Ray if there is a cluster to join and `run.engine` allows it. A Ray of our own on this
    machine would add nothing to what threads do.

    Raises a TemporaryError or ConfigError if the cluster cannot be joined.
    """
    if engine == "plain" or (engine == "auto" and (run.engine == "plain" or run.cluster is None)):
        yield Threads()
        return
    from pipeline.on_ray.session import ray_session
    from pipeline.on_ray.tasks import RayTasks

    with ray_session(run, []):
        yield RayTasks()


def load_reports(config: Config) -> list[dict[str, Any]]:
    """The reports of the subsets at `output.path`. Raises a SourceError if there is no complete subset."""
    if config.output is None:
        raise ConfigError("report needs an output section with the path of the subset; the config has none.")
    reports = []
    for variant in config.variants():
        path = variant.output.path if variant.output is not None else config.output.path
        reports.append(_report(Dataset.open(Place.open(path, config.storage), SUBSET).place))
    return reports


def open_scored(config: Config) -> Dataset:
    """The complete dataset at `scored`. Raises a SourceError if there is none."""
    return Dataset.open(Place.open(config.scored, config.storage))


def kept_columns(source: Source, *, slim: bool) -> list[str]:
    """Columns of the scored rows that a subset keeps; tools and arguments of templates only where a pair has some."""
    names = list(_SLIM) if slim else [name for name in source.schema.names if name not in _INTERNAL]
    beside = [name for name in (schema.TOOLS, schema.TEMPLATE_KWARGS) if name in source.schema.names]
    return [*(name for name in names if name not in beside), *filter(source.has_values, beside)]


def write_found(found: Found, source: Source, former: Mapping[str, Any] | None, output: Output, place: Place) -> None:
    """Write what `select_rows` found as a subset. Raises a FingerprintError if the place holds another subset."""
    fingerprint = _fingerprint(_scored(source, found), found.selection.query, output, former)
    _write(Threads(), source, found, place, output, Plan(kind=SUBSET, fingerprint=fingerprint, config={}))


def _scored(source: Source, found: Found) -> Mapping[str, Any]:
    """The fingerprint of scored rows: of a dataset; of rows in memory, what was found among them."""
    if isinstance(source, Dataset):
        return source.manifest.fingerprint
    return {"selection": found.selection.to_dict(), "scores": digest(found.selection.scores.tobytes())}


def _write(passes: Passes, source: Source, found: Found, place: Place, output: Output, plan: Plan) -> None:
    columns, selection = kept_columns(source, slim=output.slim), found.selection
    parts = None if output.partition_by is None else partition(selection, source, output.partition_by)
    if parts is None:
        shards = file_shards(selection.num_by_split, output.rows_per_file)
    else:
        shards = tuple(
            shard
            for (folder, split), rows in parts.items()
            for shard in file_shards({split: int(rows.size)}, output.rows_per_file, folder)
        )
    fields = [source.schema.field(name) for name in columns]
    plan = replace(
        plan,
        schema=pa.schema([*fields, *(f for f in selection.fields if not output.slim or f.name == schema.WEIGHT)]),
        shards=shards,
        formats=output.formats,
    )
    run = Run.claim(place, with_layout(plan))
    report = summarise(found, source, passes=passes)
    if isinstance(source, Dataset):
        read = {"read": source.manifest.num_rows, "dropped": dict(sorted(source.manifest.drops_by_reason.items()))}
        report["flow"] = {**read, **report["flow"]}
        report["scoring"] = _scoring(source.manifest)
    made_from = source.manifest.config if isinstance(source, Dataset) else {}
    several = {"rewards": made_from["rewards"]} if made_from.get("rewards") else {}
    extra = {
        "selection": report["selection"],
        "scored_by": _scored_by(_scored(source, found)),
        "made_from": {name: made_from.get(name) for name in ("source", "sources", *_SCORING)} | several,
    }
    task = partial(_write_file, run, source, selection, parts, columns)
    with ThreadPoolExecutor(max_workers=1) as beside:
        page = beside.submit(report_page, report, about(run.plan, extra))
        files = [file for of_one in passes.map(task, range(len(run.plan.shards))) for file in of_one]
    finish_files(run, files, {REPORT_FILE: sealed(report), PAGE_FILE: page.result().encode()}, extra)


def _scoring(manifest: Manifest) -> dict[str, Any] | None:
    """Time and throughput of the process that completed the scored dataset; rows: those that were left for it.

    None if the manifest does not say, if nothing was left to do, or if the scores are those of rounds.
    """
    took = manifest.extra
    if not took.get("rows") or not took["seconds"] or "lazy" in took:
        return None
    rates = {f"{name}_per_second": took[name] / took["seconds"] for name in ("rows", "tokens") if took[name]}
    return {"of_rows": manifest.num_rows, **{name: took[name] for name in ("seconds", "rows", "tokens")}, **rates}


def _write_file(
    run: Run, source: Source, selection: Selection, parts: Partition | None, columns: Sequence[str], index: int
) -> list[File]:
    """Write one file of a subset."""
    shard, schema_ = run.plan.shards[index], run.plan.schema
    rows = slice(shard["first_row"], shard["first_row"] + shard["num_rows"])
    split = split_of(shard)
    of_split = selection.splits.get(split) if parts is None else parts[shard["folder"], split]
    tables = selection.rows(source, columns, rows if of_split is None else of_split[rows])
    return write_files(run, (table.select(schema_.names).cast(schema_) for table in tables), only=index)


def _scored_by(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that decides the scores of a row, whatever the data."""
    several = {name: fingerprint[name] for name in ("rewards",) if name in fingerprint}
    return {name: fingerprint.get(name) for name in _SCORING} | several


def _with_former(query: Query, storage: Storage, scored: Mapping[str, Any]) -> tuple[Query, Mapping[str, Any] | None]:
    """The query with the rule of select.stats_from, and that former selection; the query alone if it names none."""
    if query.rule.stats_from is None:
        return query, None
    former = _former(query.rule.stats_from, storage, scored)
    return replace(query, rule=former_rule(former, query)), former


def _former(path: str, storage: Storage, scored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The selection in a subset's manifest, which must be of scores like those of `scored`."""
    manifest = read_sealed(Place.open(path, storage))
    path = shown_path(path)
    if manifest is None:
        raise SourceError(f"select.stats_from: {path} is not there. Give the _SUCCESS.json of a subset.")
    extra = manifest.get("extra")
    selection = extra.get("selection") if isinstance(extra, dict) else None
    if not isinstance(extra, dict) or not isinstance(selection, dict):
        raise SourceError(f"select.stats_from: {path} holds no selection. Give the _SUCCESS.json of a subset.")
    differing = list(differences(extra.get("scored_by") or {}, _scored_by(scored)))
    if differing:
        raise FingerprintError(
            f"select.stats_from: {path} was made from scores of other models or settings; what differs: "
            f"{', '.join(field for field, _, _ in differing)}. Thresholds hold for one set of models: score with the "
            "same."
        )
    return selection


def _report(place: Place) -> dict[str, Any]:
    report = read_sealed(place / REPORT_FILE)
    if report is None:
        raise SourceError(f"{place / REPORT_FILE} is missing from a complete subset. Select again to another path.")
    return report

"""What commands that score and select tell their observers. The functions here write into Facts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import ColumnsModel, ColumnsReward, Config, Output, RewardConfig, names_of
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET, Manifest
from pipeline.data.place import Place
from pipeline.data.run import Run
from pipeline.data.sealed import fingerprint_digest
from pipeline.observers.facts import Data, Facts, Name, Origin
from pipeline.rewards.registry import reward_backends
from pipeline.selection.labels import sides_of
from pipeline.selection.ranking import Query, wanted_by
from pipeline.selection.selection import Found
from pipeline.selection.source import Source, TableSource
from pipeline.sources.formats import FORMATS
from pipeline.sources.mix import MixReader
from pipeline.sources.reader import PairReader
from pipeline.sources.rows import BESIDE_PAIR, PROMPT_TEXTS
from pipeline.sources.shards import SourceFile
from pipeline.steps.select import SelectRun, open_scored
from pipeline.steps.shards import SourceRows
from pipeline.steps.step import Step
from pipeline.steps.summary import ScoreSummary

_COMMIT: Final = re.compile(r"^hf://[^@]+@([0-9a-f]{40})(?:/|$)")
_REWARDS: Final = (s.REWARD_CHOSEN, s.REWARD_REJECTED)
_SIDES: Final = (s.PROMPT, s.CHOSEN, s.REJECTED)


def tell_config(facts: Facts, config: Config) -> None:
    """Names of what is read and written, before anything is opened."""
    if facts.command != "select":
        facts.inputs = [Data(url=source.path) for source in config.all_sources().values()]
        facts.outputs = [Data(url=config.scored)]
    else:
        facts.inputs = [Data(url=config.scored)]
    if facts.command != "score":
        facts.outputs += [Data(url=each.output.path) for each in config.variants() if each.output is not None]


def tell_scoring(facts: Facts, config: Config, step: Step, run: Run) -> None:
    """The sources, and the scored dataset that is to be made. Arguments as `prepare_score` gives them."""
    assert isinstance(step.rows, SourceRows)  # noqa: S101 - commands read sources
    reader, files = step.rows.reader, step.rows.files
    if isinstance(reader, MixReader):
        readers = [
            (of_one, [file for file in files if file.path.startswith(f"{name}/")])
            for name, of_one in reader.readers.items()
        ]
        given: Sequence[Mapping[str, Any]] = step.config["sources"]
    else:
        assert isinstance(reader, PairReader)  # noqa: S101
        readers, given = [(reader, list(files))], [step.config["source"]]
    facts.inputs = [_source(section["path"], *of_one) for section, of_one in zip(given, readers, strict=True)]
    origins: dict[str, tuple[Origin, ...]] = {}
    deciders: tuple[Origin, ...] = ()
    for data, (of_one, _) in zip(facts.inputs, readers, strict=True):
        for column, found in _origins_of_scored(data.name, of_one, config, run.plan.schema).items():
            origins[column] = origins.get(column, ()) + found
        deciders += _deciders_of_scored(data.name, of_one)
    facts.fingerprint = {"scored": fingerprint_digest(run.plan.fingerprint)}
    facts.outputs = [
        Data(
            url=config.scored,
            schema=run.plan.schema,
            version=fingerprint_digest(run.plan.fingerprint),
            origins=origins,
            deciders=deciders,
        )
    ]


def tell_selecting(facts: Facts, runs: Sequence[SelectRun]) -> None:
    """The subsets that are to be made, of the scored dataset that is told already or complete."""
    if facts.command == "select":
        scored = Data.of(open_scored(runs[0].config), runs[0].config.scored)
        facts.inputs, facts.outputs = [scored], []
    else:
        scored = facts.outputs[0]
        facts.outputs = [scored]
    facts.outputs += [_subset(run.query, run.output, scored) for run in runs]
    facts.outputs += [Data(url=f"hf://datasets/{run.output.hub}") for run in runs if run.output.hub is not None]
    facts.outputs += [Data(url=run.output.table.url) for run in runs if run.output.table is not None]
    facts.fingerprint = {**facts.fingerprint, "subsets": [fingerprint_digest(run.plan.fingerprint) for run in runs]}


def tell_scored(facts: Facts, summary: ScoreSummary, manifest: Manifest) -> None:
    """The scored dataset, complete."""
    facts.outputs[0] = replace(
        facts.outputs[0],
        num_rows=manifest.num_rows,
        size=sum(file.size for file in manifest.files),
        num_files=len(manifest.files),
    )
    facts.counts |= {
        "rows_read": manifest.num_rows,
        "rows_kept": manifest.num_kept,
        "rows_dropped": manifest.num_dropped,
        "drops": manifest.drops_by_reason,
    }
    facts.figures["seconds"] = facts.figures.get("seconds", 0.0) + summary.seconds
    facts.figures |= {f"busy_seconds/{stage}": seconds for stage, seconds in summary.busy_s.items()}
    if summary.num_tokens_now:
        rate = summary.num_tokens_now / summary.seconds
        facts.figures |= {"tokens": summary.num_tokens_now, "tokens_per_second": rate}


def tell_rewarding(facts: Facts, config: RewardConfig, step: Step, run: Run) -> None:
    """The source, and the rewarded dataset that is to be made. Arguments as `prepare_reward` gives them."""
    assert isinstance(step.rows, SourceRows) and isinstance(step.rows.reader, PairReader)  # noqa: S101, PT018
    version = fingerprint_digest(run.plan.fingerprint)
    facts.inputs = [_source(step.config["source"]["path"], step.rows.reader, step.rows.files)]
    facts.outputs = [Data(url=config.rewarded, schema=run.plan.schema, version=version)]
    facts.fingerprint = {"rewarded": version}


def tell_found(facts: Facts, scored: Source, found: Found, output: Output) -> None:
    """The subset that is to be made of what a call found in a scored dataset."""
    assert isinstance(scored, Dataset)  # noqa: S101 - rows in memory have no lineage
    facts.inputs = [Data.of(scored, str(scored.place))]
    facts.outputs = [_subset(found.selection.query, output, facts.inputs[0])]
    facts.fingerprint = {"scored": facts.inputs[0].version, "selection": found.selection.to_dict()}


def tell_selected(
    facts: Facts, output: Output, place: Place, report: Mapping[str, Any], *, is_variant: bool = False
) -> None:
    """A subset, complete, and its report; names of figures begin with that of the variant, if there are several."""
    name = Name.of(output.path)
    made = Data.of(Dataset.open(place, SUBSET), output.path)
    facts.outputs = [
        replace(made, origins=data.origins, deciders=data.deciders) if data.name == name else data
        for data in facts.outputs
    ]
    facts.reports[output.path] = report
    variant = f"{output.path.rstrip('/').rpartition('/')[2]}/" if is_variant else ""
    chosen = report["selection"]
    facts.counts |= {f"{variant}rows_ranked": chosen["num_ranked"], f"{variant}rows_selected": chosen["k"]}
    figures = {"threshold": chosen.get("threshold"), "weight": chosen["fitted"].get("weight")}
    for group, margins in report["margins"].items():
        for margin, moments in margins.items():
            figures |= {f"{group}/{margin}_{moment}": moments[moment] for moment in ("mean", "std")}
    facts.figures |= {f"{variant}{name}": float(value) for name, value in figures.items() if value is not None}


def _source(path: str, reader: PairReader, files: Sequence[SourceFile]) -> Data:
    names = reader.map.reads([*reader.columns, *(field.name for field in reader.passthrough)])
    names += [name for name in (reader.where.columns if reader.where is not None else ()) if name not in names]
    commit = _COMMIT.search(path)
    return Data(
        url=path,
        schema=reader.stored or pa.schema([pa.field(name, pa.null()) for name in names]),
        version=commit[1] if commit else fingerprint_digest({file.path: file.digest for file in files}),
        num_rows=sum(file.num_rows for file in files),
        size=sum(file.size for file in files),
        num_files=len(files),
    )


def _from(dataset: Name, columns: Sequence[str]) -> tuple[Origin, ...]:
    return tuple(Origin(dataset, column) for column in dict.fromkeys(columns))


def _pair_columns(reader: PairReader) -> list[str]:
    """The columns that its format makes pairs of."""
    of_pair = {*FORMATS[reader.format].reads, *BESIDE_PAIR}
    return reader.map.reads([name for name in reader.columns if name in of_pair])


def _deciders_of_scored(dataset: Name, reader: PairReader) -> tuple[Origin, ...]:
    """The columns that decide which rows of a source are left out."""
    columns = [] if reader.benchmarks is None else _pair_columns(reader)
    return _from(dataset, [*columns, *(reader.where.columns if reader.where is not None else ())])


def _origins_of_scored(
    dataset: Name, reader: PairReader, config: Config, schema: pa.Schema
) -> dict[str, tuple[Origin, ...]]:
    """The columns of a source that each scored column is made from."""

    def read(names: Sequence[str]) -> tuple[Origin, ...]:
        return _from(dataset, reader.map.reads(names))

    def same(name: str) -> tuple[Origin, ...]:
        [column] = reader.map.reads([name])
        return (Origin(dataset, column, is_same=name not in reader.map.paths),)

    pair = _from(dataset, _pair_columns(reader))
    found = dict.fromkeys((*_SIDES, s.CONTENT_DIGEST), pair)
    not_prompt = (s.CHOSEN, s.REJECTED, s.TOOLS, *BESIDE_PAIR)
    of_prompt = [name for name in reader.columns if name in FORMATS[reader.format].reads and name not in not_prompt]
    if {s.CHOSEN, s.REJECTED} <= {*reader.columns} and {s.PROMPT, *PROMPT_TEXTS} & {*of_prompt}:
        found |= {s.PROMPT: read(of_prompt), s.CHOSEN: read([s.CHOSEN]), s.REJECTED: read([s.REJECTED])}
    found |= {name: read([name]) for name in (s.TOOLS, s.TEMPLATE_KWARGS) if name in reader.columns}
    found[s.ID] = pair if reader.id_column is None else read([reader.id_column])
    scores = reader.scores
    if isinstance(config.reward, ColumnsReward):
        found |= dict.fromkeys(_REWARDS, pair if scores.candidates and not scores.rewards else read(scores.rewards))
        found[s.REWARDS_ALL] = pair if scores.candidates else read(list(filter(None, [scores.rewards_all])))
    found |= {name: read([name]) for name in scores.named}
    for member, reward in reward_backends(config.members).items():
        beside = () if reward.reads_ids else read([field.name for field in reader.passthrough])
        columns_of = s.lead_columns if reward.compares else s.reward_columns
        columns = [column for name in names_of(member, reward.section) for column in columns_of(name)]
        found |= dict.fromkeys(columns, tuple(dict.fromkeys((*pair, *beside))))
    for names, section in ((s.REFERENCE_SCORES, config.reference), (s.POLICY_SCORES, config.policy)):
        if isinstance(section, ColumnsModel):
            found |= {name: same(name) for name in names if name in scores.reads}
        elif section is not None:
            found |= dict.fromkeys(names, pair)
    found |= {field.name: same(field.name) for field in reader.passthrough}
    return {name: origins for name, origins in found.items() if origins and name in schema.names}


def _subset(query: Query, output: Output, scored: Data) -> Data:
    """The subset of a query. Its columns come from the scored ones; from theirs, if the same command makes these."""
    schema, ranker = scored.schema, query.ranker
    assert schema is not None  # noqa: S101
    origins: dict[str, tuple[Origin, ...]] = {name: (Origin(scored.name, name, is_same=True),) for name in schema.names}
    if query.rule.labels == "swap":
        for sides in sides_of(schema.names):
            origins |= dict.fromkeys(sides, _from(scored.name, sides))
    terms = [name for term in ranker.terms for name in ranker.quantity(term).columns]
    if output.slim:
        origins = {name: origins[name] for name in _SIDES}
    else:
        origins[s.MARGIN_EXPLICIT] = _from(scored.name, query.explicit.columns)
        origins[s.MARGIN_IMPLICIT] = _from(scored.name, query.implicit.columns)
        origins[s.POTENTIAL] = _from(scored.name, terms)
    if query.rule.weights:
        origins[s.WEIGHT] = _from(scored.name, terms)
    read = wanted_by([query], TableSource(table=schema.empty_table())).columns(schema.names)
    deciders = _from(scored.name, read)
    if scored.origins:
        origins = {column: _through(found, scored) for column, found in origins.items()}
        deciders = tuple(dict.fromkeys((*scored.deciders, *_through(deciders, scored))))
    kept = {column: found for column, found in origins.items() if found}
    return Data(url=output.path, origins=kept, deciders=deciders)


def _through(origins: Sequence[Origin], scored: Data) -> tuple[Origin, ...]:
    """The same from where the scored columns come from."""
    found = [
        before._replace(is_same=before.is_same and origin.is_same)
        for origin in origins
        for before in scored.origins.get(origin.column, ())
    ]
    return tuple(dict.fromkeys(found))

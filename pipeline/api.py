"""What the commands do, as calls: on data frames, datasets, Arrow tables, lists of dicts, paths and URLs.

    from pipeline import compare, potential, read_pairs, score, select
    scored = score(rows, policy="HuggingFaceTB/SmolLM2-135M-Instruct", reward="columns", objective="simpo")
    subset = select(scored, fraction=0.4, weight="auto", per_prompt=1)
    gaps = potential(scored, objective="cpo", beta=0.1)

Keyword arguments are the keys of the config (see `alignpot config --reference`). Rows in memory are scored in this
process, with their files in a temporary folder; give `path` to keep the scored dataset, and to go on after a stop.
Every function raises an AlignpotError that says what is wrong with the arguments, the data or a model.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import (
    Metric,
    Objective,
    Order,
    Select,
    Source,
    Storage,
    parse_config,
    parse_prompts,
    parse_reward,
    parse_target,
    resolved,
)
from pipeline.config.load import parse
from pipeline.data.benchmarks import read_benchmarks
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ConfigError
from pipeline.frames import Rows, to_table
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.observers.facts import tell_copy
from pipeline.observers.observed import observed
from pipeline.results import Pairs, Rewarded, Scored, Subset
from pipeline.selection.ranking import Query, rank
from pipeline.selection.selection import Reader
from pipeline.selection.source import Source as ScoredRows
from pipeline.selection.source import TableSource, no_positions

if TYPE_CHECKING:
    from pipeline.selection.compare import Comparison

_KEYS: Final = {name: {*kind.model_fields} - {"name"} for name, kind in (("objective", Objective), ("metric", Metric))}
_EVERY_ROW: Final = 1.0


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
    dict; or `rewards` in place of reward, several by name, each given like one.
    """
    from pipeline.steps.score import check_dropped, prepare_score
    from pipeline.steps.score import score as run_score
    from pipeline.steps.told import tell_scored, tell_scoring

    given = {"policy": policy, "reference": reference, "reward": reward}
    rewards: Mapping[str, Any] = sections.pop("rewards", {})
    judged = reward is not None or rewards
    metric = "potential" if policy is not None and judged else "explicit" if policy is None else "implicit"
    with ExitStack() as files:
        work = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="alignpot-")))
        named = [
            {**source, "path": _path_of(source.get("path"), work / f"rows-{index}")}
            for index, source in enumerate(sections.pop("sources", ()))
        ]
        read: dict[str, Any] = {"sources": named} if named else {}
        if data is not None or not named:
            read["source"] = {"path": _path_of(data, work / "rows"), **sections.pop("source", {})}
        several = {name: _model_section(each, "reward", work / f"reward-{name}") for name, each in rewards.items()}
        read |= {"rewards": several} if several else {}
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


def reward(
    data: Any, *, reward: Any = None, path: str | Path | None = None, engine: str = "plain", **sections: Any
) -> Rewarded:
    """Give every response to a prompt its reward: rows of a prompt with one response or several.

    data: as for `read_pairs`. reward: a model or function as for `score`; or `rewards`, several by name. path: keeps
    the rewarded dataset there; a call with the same arguments goes on with it. engine: plain, in this process, or ray.
    sections: further sections of the config as dicts (source, tokens, run, storage).
    """
    from pipeline.steps.reward import prepare_reward
    from pipeline.steps.reward import reward as run_reward
    from pipeline.steps.score import check_dropped
    from pipeline.steps.told import tell_rewarding, tell_scored

    with ExitStack() as files:
        work = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="alignpot-")))
        rewards = sections.pop("rewards", {})
        several = {name: _model_section(each, "reward", work / f"reward-{name}") for name, each in rewards.items()}
        config = parse_reward({
            "source": {"path": _path_of(data, work / "rows"), **sections.pop("source", {})},
            **({} if reward is None else {"reward": _model_section(reward, "reward", work / "reward")}),
            **({"rewards": several} if several else {}),
            "rewarded": str(path or work / "rewarded"),
            "run": {"engine": engine, **sections.pop("run", {})},
            **sections,
        })  # fmt: skip
        settings = config.model_dump(mode="json")
        with observed("reward", config.rewarded, settings, config.run.track, lineage=path is not None) as told:
            rewarding = prepare_reward(config)
            told.add(tell_rewarding, *rewarding)
            told.begin()
            summary, manifest = run_reward(*rewarding)
            told.add(tell_scored, summary, manifest)
            check_dropped(config, manifest)
        return Rewarded(config, files.pop_all())


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
    query = _query(config, objective, metric, {"fraction": _EVERY_ROW, **keys}).on(source.schema)
    columns, none = Reader(source, [query], duplicates=no_positions()).for_query(query)
    scores = rank(columns, query, none).scores
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


def calibrate(
    config: Mapping[str, Any], against: Mapping[str, Any], *, rows: int = 256, keep: str | Path | None = None
) -> dict[str, Any]:
    """Score some rows by two back ends or models: differences of margins, agreement of ranks and selections, speed.

    config, against: whole configs as dicts; the rows are a seeded sample of the first one's source. keep: as for
    `alignpot calibrate`. Returns numbers that can be written as JSON.
    """
    from pipeline.steps.calibrate import calibrate as compare_sides

    first, second = parse_config(config), parse_config(against, where="the config to compare with")
    return compare_sides(first, second, num_rows=rows, keep=None if keep is None else str(keep))


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


def prompts(
    candidates: Any, path: str | Path, *, storage: Mapping[str, Any] | Storage | None = None, **band: Any
) -> str:
    """Choose prompts by the rewards of all their responses, for trainers such as GRPO; returns what was kept, in words.

    candidates: what `reward` or `score` gave, or the path or URL of such a dataset. path: of the prompts. band: keys of
    the section prompts (pass_above, pass_rate, variance, ...).
    """
    from pipeline.commands import prompts_only

    source = candidates.path if isinstance(candidates, Scored | Rewarded) else str(candidates)
    config = {"candidates": source, "output": str(path), "prompts": band, "storage": _storage(storage).model_dump()}
    [text] = prompts_only(parse_prompts(config, where="the call"))
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


def publish(  # noqa: PLR0913 - each option is a key of the config, or of `storage`
    dataset: str | Path,
    target: str,
    *,
    mode: str = "append",
    tag: str | None = None,
    partition: Mapping[str, Any] | None = None,
    split: str = schema.TRAIN,
    storage: Mapping[str, Any] | Storage | None = None,
) -> str:
    """Publish a subset, or the kept rows of a scored dataset, in a table, in one commit, unless it is there.

    target: `iceberg://CATALOG/NAMESPACE.TABLE`, `delta://PATH` or `lance://PATH`. mode: append or replace. tag: for
    lance, a name of the version. partition: of a partitioned table, the value of each column. split: of a subset, which
    rows. Returns what was done, in words.
    """
    from pipeline.exports.tables.publish import publish as publish_rows

    section, table = _storage(storage), parse_target(target, mode=mode, tag=tag, partition=partition)
    place = _place(dataset, section)
    with observed("publish", table.url, {"mode": mode, "split": split}) as told:
        told.add(tell_copy, str(dataset), place)
        told.begin()
        return publish_rows(place, table, section, split)


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
    if role == "reward" and callable(model) and not hasattr(model, "save_pretrained"):
        return {"backend": "function", "function": _name_of(model)}
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(
            f"a model is given as {type(model).__qualname__}; wanted a name, a folder, a section as a dict, or a model "
            "of transformers."
        )
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.name_or_path).save_pretrained(folder)
    return {**base, "model": str(folder), "dtype": str(model.dtype).removeprefix("torch.")}


def _name_of(function: Any) -> str:
    """`module:name` of a reward function, by which the process that calls it finds it."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module == "__main__" or getattr(sys.modules.get(str(module)), name, None) is not function:
        raise ConfigError(
            "reward: the function is called in a process of its own, which finds it by its name. Write it with def at "
            "the top level of a module that can be imported. For arguments give a section: {backend: function, "
            "function: module:name, arguments: {...}}."
        )
    return f"{module}:{name}"


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
        found = next((name for name, of_section in _KEYS.items() if key in of_section), "select")
        # An order is that of the metric implicit, or that of the rows that are written.
        sections["select" if key == "order" and value in get_args(Order) else found][key] = value
    config = parse_config({"scored": "scored", "output": {"path": "subset"}, **sections}, where="the call")
    assert config.select is not None  # noqa: S101 - it was given
    return Query(objective=config.objective, metric=config.metric, rule=config.select)


def _named(section: Any) -> dict[str, Any]:
    return {"name": section} if isinstance(section, str) else dict(section)

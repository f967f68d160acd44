"""The card of a subset on the hub: what was selected, from what, by which models, and how to load it.

It is public where the dataset is. So it names datasets and models of the hub in full, and of other paths the last part
alone, and shows no text of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import yaml

from pipeline import schema
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest, models_of
from pipeline.metrics.potential import METRICS
from pipeline.selection.report import render
from pipeline.shown import shown

MARK: Final = "alignpot_subset"
"""Key of the header: the card is ours, and of the subset of this digest."""
_ON_HUB: Final = "hf://datasets/"
_SIZES: Final = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def card(repo: str, dataset: Dataset, report: Mapping[str, Any], mark: str) -> str:
    """The text of README.md. mark: the digest of the subset."""
    manifest, splits = dataset.manifest, sorted(dataset.splits, key=lambda name: (name != schema.TRAIN, name))
    chosen, made_from = report["selection"], manifest.extra.get("made_from") or {}
    sources = [source for source in (made_from.get("source"), *(made_from.get("sources") or ())) if source]
    metric = chosen["metric"]
    data_files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    header = {
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "alignpot"],
        "size_categories": [_size(manifest.num_rows)],
        **_source_datasets(sources),
        "configs": [{"config_name": "default", "data_files": data_files}],
        MARK: mark,
    }
    facts = [
        ("pairs", f"{manifest.num_rows:,} of {chosen['num_rows']:,}"),
        *(("held out", f"{dataset.splits[name]:,} as {_code(name)}") for name in splits[1:]),
        *(("source", text) for source in sources for text in _source(source)),
        *_models(manifest, made_from),
        ("metric", f"{metric['name']}: {_code(METRICS[metric['name']].formula)}"),
        *_weight(chosen),
        ("objective", chosen["objective"]["name"]),
        ("alignpot", manifest.version),
    ]
    return "\n".join([
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# {repo.rpartition('/')[2]}\n",
        f"{manifest.num_rows:,} preference pairs, chosen by alignpot out of {chosen['num_rows']:,}.\n",
        "| | |\n|---|---|",
        *(f"| {name} | {text} |" for name, text in facts),
        f"\n## The selection in numbers\n\n```\n{render({**report, 'top': [], 'bottom': []})}\n```\n",
        "## Use\n\n```python\nfrom datasets import load_dataset\n",
        f'pairs = load_dataset("{repo}", split="train")\n```\n',
        f"{_columns(manifest.schema.names)}\n\nThe licence is that of the source.\n",
    ])  # fmt: skip


def _columns(names: Sequence[str]) -> str:
    text = "`prompt`, `chosen` and `rejected` are lists of messages; the answers hold no turn of the prompt."
    if schema.POTENTIAL not in names:
        return text
    if schema.WEIGHT in names:
        text += f" `{schema.WEIGHT}` says how much a pair counts in training; it is 1 on average."
    return (
        f"{text} `{schema.POTENTIAL}` is the score that was ranked, `{schema.MARGIN_EXPLICIT}` and "
        f"`{schema.MARGIN_IMPLICIT}` are the margins of the reward and of the policy. Log-probabilities are natural "
        "logarithms, summed over the tokens of an answer."
    )


def _source_datasets(sources: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    paths = [
        str(source.get("path")).removeprefix(_ON_HUB)
        for source in sources
        if str(source.get("path")).startswith(_ON_HUB)
    ]
    names = ["/".join(path.partition("@")[0].split("/")[:2]) for path in paths]
    return {"source_datasets": list(dict.fromkeys(names))} if names else {}


def _source(source: Mapping[str, Any]) -> Iterator[str]:
    if source.get("path"):
        of = "".join(f", {name} {_code(source[name])}" for name in ("config", "split") if source.get(name))
        yield f"{_code(_public(str(source['path'])))}{of}"


def _models(manifest: Manifest, made_from: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Role and name of each model; a model of the hub with its commit, another with the digest of its weights."""
    for role, scored_by, given in models_of(manifest.extra.get("scored_by") or {}, made_from):
        if not isinstance(scored_by, Mapping):
            continue
        adapter = scored_by.get("adapter")
        name = scored_by.get("name") or _public(str(given.get("model") or ""))
        version = scored_by.get("revision") or scored_by.get("weights")
        text = _code(name) if name else "scores that the source holds"
        text += f" ({_code(str(version)[:12])})" if version else ""
        if isinstance(adapter, Mapping):
            text += f" with adapter {_code(adapter.get('name') or _public(str(given.get('adapter') or '')))}"
        yield role, text


def _weight(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    metric = chosen["metric"]
    if metric["name"] == "potential":
        found = f"{chosen['fitted']['weight']:.3g}, set by {metric['ratio']}" if metric["weight"] == "auto" else ""
        yield "weight", found or str(metric["weight"])


def _public(path: str) -> str:
    return path if path.startswith(_ON_HUB) else path.rstrip("/").rpartition("/")[2]


def _code(text: Any) -> str:
    r"""As code in a cell of a table, where | would end the cell."""
    return f"`{shown(text, 200).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _size(num_rows: int) -> str:
    """The bucket of the hub that a number of rows falls into."""
    between = (f"{low}<n<{high}" for low, high in pairwise(_SIZES))
    buckets = [f"n<{_SIZES[0]}", *between, f"n>{_SIZES[-1]}"]
    return buckets[min(max(len(str(num_rows)) - 3, 0), len(_SIZES))]

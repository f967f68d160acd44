"""Selections over a table with ties, repeats, nulls, groups, contradicted labels and several pairs a prompt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import cli, schema
from pipeline.config import Storage
from tests.steps import scored_data

FILE: Final = Path(__file__).with_name("selections.json")
GROUPED: Final = {"group_by": scored_data.TOPIC}
OBJECTIVES: Final = (
    "simpo", "alphapo", "cpo", "orpo", "rrhf", "slic-reference-free", "dpo", "dpo-norm", "ipo", "ipo-sum", "kto",
    "slic", "r-dpo", "dpop", "alpha-dpo", "f-dpo-forward-kl", "f-dpo-js",
)  # fmt: skip
CASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "potential": {},
    "potential-simpo": {"objective": {"name": "simpo", "beta": 2.0}},
    "potential-weighted": {"metric": {"weight": 2.5, "implicit": "signed"}, "select": {"k": 50}},
    "potential-unweighted": {"metric": {"weight": 0}},
    "potential-robust": {"metric": {"normalise": "robust", "explicit": "absolute"}},
    "potential-none": {"metric": {"normalise": "none", "explicit": "candidates"}},
    "potential-rank": {"metric": {"normalise": "rank"}},
    "explicit-tied": {"metric": {"name": "explicit"}, "select": {"k": 77}},
    "explicit-candidates": {"metric": {"name": "explicit", "explicit": "candidates"}},
    "implicit-smallest": {"metric": {"name": "implicit"}},
    "implicit-largest": {"metric": {"name": "implicit", "order": "largest", "implicit": "signed"}},
    "random": {"metric": {"name": "random"}, "select": {"seed": 7}},
    "bees-add": {"metric": {"name": "bees-add"}},
    "bees-mul": {"metric": {"name": "bees-mul"}},
    "difficulty": {"metric": {"name": "difficulty"}},
    "sigma-gap": {"metric": {"name": "sigma-gap"}},
    **{
        f"auto-{ratio}": {"metric": {"weight": "auto", "ratio": ratio}}
        for ratio in ("std", "robust", "bradley-terry", "decorrelation", "whitening")
    },
    "auto-whitening-robust": {"metric": {"weight": "auto", "normalise": "robust"}},
    "labels-drop": {"select": {"labels": "drop"}},
    "labels-swap": {"select": {"labels": "swap", "per_prompt": 1}},
    "per-prompt": {"select": {"per_prompt": 2}},
    "band": {"select": {"fraction": None, "min_score": -0.5, "max_score": 1.0}},
    "band-fraction": {"select": {"fraction": 0.5, "min_score": -1.0}},
    "quotas-proportional": {"select": GROUPED},
    "quotas-equal": {"select": {**GROUPED, "quotas": "equal", "fraction": 0.7}},
    "quotas-weights": {"select": {**GROUPED, "quotas": {"math": 2, "chat": 0.5}, "k": 40, "per_prompt": 3}},
    "deduplicate-exact": {"select": {"deduplicate": "exact", "fraction": 0.6}},
    "deduplicate-near": {"select": {"deduplicate": "near", "similarity": 0.6, **GROUPED, "fraction": 0.6}},
    "preset-paper": {"preset": "paper", "select": {"fraction": 0.25}},
    "preset-paper-selfplay": {"preset": "paper-selfplay", "select": {"fraction": 0.25}},
    **{f"objective-{name}": {"objective": {"name": name}, "select": {"fraction": 0.1}} for name in OBJECTIVES},
}
FORMER: Final = {"potential": "former", "quotas-equal": "former-quotas", "sigma-gap": "former-sigma-gap"}
"""Selections that are applied to other rows by `select.stats_from`, and the names of what they then keep."""


def table(seed: int, tag: str) -> pa.Table:
    """Scored rows whose scores are coarse, so that many of them tie."""
    rows = scored_data.scored_table(320, seed=seed, tag=tag)
    for name in (field.name for field in schema.SCORE_FIELDS):
        column = rows.schema.get_field_index(name)
        if pa.types.is_floating(rows.schema.field(column).type):
            values = np.round(rows.column(column).to_numpy() * 2) / 2
            rows = rows.set_column(column, rows.schema.field(column), pa.array(values, mask=np.isnan(values)))
    return rows


def found(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """The rows of every selection, in the order of the subset: ids, and the scores they were ranked by."""
    datasets = {
        name: scored_data.write_scored(folder / name, Storage(), table(seed, name), 41)
        for seed, name in enumerate(("first", "second"))
    }
    sweep = [{"name": name, **sections} for name, sections in CASES.items() if "preset" not in sections]
    kept = _select(folder, "sweep", datasets["first"], sweep=sweep)
    for name in (name for name, sections in CASES.items() if "preset" in sections):
        kept |= _select(folder, name, datasets["first"], **CASES[name])
    for name, other in FORMER.items():
        sections = {key: CASES[name][key] for key in ("objective", "metric") if key in CASES[name]}
        former = {"select": {"stats_from": str(folder / "sweep-subset" / name / "_SUCCESS.json")}}
        kept |= _select(folder, other, datasets["second"], **sections, **former)
    return kept


def written() -> dict[str, dict[str, list[Any]]]:
    """What `found` gave when it was written down."""
    return json.loads(FILE.read_text())


def _select(folder: Path, name: str, scored: str, **given: Any) -> dict[str, dict[str, list[Any]]]:
    output = folder / f"{name}-subset"
    data = scored_data.sections(scored, output, **given)
    if "preset" in given:
        del data["objective"]
    cli.app(["select", str(scored_data.write_config(folder / f"{name}.yaml", data))], standalone_mode=False)
    folders = {variant["name"]: output / variant["name"] for variant in given.get("sweep", ())} or {name: output}
    return {each: _rows(path) for each, path in folders.items()}


def _rows(subset: Path) -> dict[str, list[Any]]:
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((subset / "parquet").glob("*.parquet")))
    return {"ids": rows[schema.ID].to_pylist(), "scores": rows[schema.POTENTIAL].to_pylist()}

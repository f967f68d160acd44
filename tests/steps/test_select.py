"""Selection as a job: threads and Ray, any layout and any place give the same bytes; a sweep equals single runs."""

import math
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import api
from pipeline import schema as names
from pipeline.commands import report_only, select_only
from pipeline.config import Storage
from pipeline.errors import AlignpotError, ConfigError
from pipeline.steps.select import load_reports, prepare_select, select_subsets
from tests.fixtures_storage import S3Server
from tests.steps import scored_data as data

COMMON = {
    "fraction": {},
    "quotas": {
        "select": {"group_by": data.TOPIC, "quotas": "equal", "fraction": 0.3},
        "metric": {"normalise": "robust"},
    },
    "per-prompt": {"select": {"per_prompt": 1, "fraction": 0.8, "labels": "swap"}, "metric": {"normalise": "rank"}},
    "near": {"select": {"deduplicate": "near", "similarity": 0.6}, "metric": {"weight": "auto"}},
}
OTHERS = {
    "swap": {"select": {"labels": "swap"}},
    "robust": {"metric": {"normalise": "robust"}},
    "rank": {"metric": {"normalise": "rank"}},
    "auto": {"metric": {"weight": "auto"}},
    "weights": {"select": {"group_by": data.TOPIC, "quotas": {"math": 2, "chat": 0.5}, "k": 60}},
    "exact-by-group": {"select": {"deduplicate": "exact", "group_by": data.TOPIC, "per_prompt": 2}},
    "drop": {"select": {"labels": "drop"}},
    "band": {"select": {"fraction": None, "min_score": -0.5, "max_score": 1.0}},
    "bees-mul": {"metric": {"name": "bees-mul"}},
    "sigma-gap": {"metric": {"name": "sigma-gap"}},
    "random": {"metric": {"name": "random"}, "select": {"seed": 7}},
    "simpo": {"objective": {"name": "simpo", "beta": 2.0}},
}
VARIANTS = COMMON | OTHERS
BOTH = [pytest.param(COMMON, id="common"), pytest.param(OTHERS, id="others", marks=pytest.mark.soak)]


def sweep_of(variants: dict[str, dict]) -> list[dict]:
    return [{"name": name, **sections} for name, sections in variants.items()]


SWEEP = sweep_of(COMMON)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, scored: str) -> dict[str, dict[str, bytes]]:
    """Objects of every variant, from one sweep by threads on local disk."""
    output = tmp_path_factory.mktemp("swept")
    select_subsets(prepare_select(data.select_config(scored, output, sweep=sweep_of(VARIANTS))))
    return {name: data.objects(output / name) for name in VARIANTS}


def test_command_loads_neither_ray_nor_torch(scored: str, tmp_path: Path):
    """Importing them would take longer than the selection of a few thousand rows."""
    config = data.write_config(
        tmp_path / "config.yaml", data.sections(scored, tmp_path / "subset", select={"engine": "auto"})
    )
    script = (
        "import sys; from typer.main import get_command; from pipeline.cli import app\n"
        f"get_command(app)(['select', {str(config)!r}], standalone_mode=False)\n"
        "print(sorted({'ray', 'torch', 'transformers', 'vllm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def assert_same(output: str | Path, storage: Storage, expected: dict[str, dict[str, bytes]]) -> None:
    differing = {}
    for name, wanted in expected.items():
        found = data.objects(f"{output}/{name}", storage)
        wrong = sorted(path for path in {*wanted, *found} if wanted.get(path) != found.get(path))
        if wrong:
            differing[name] = wrong
    assert not differing


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("variants", BOTH)
def test_threads_and_ray_write_the_same_bytes_on_s3_and_on_disk(
    variants: dict[str, dict],
    scored_rows: pa.Table,
    scored: str,
    s3: S3Server,
    expected: dict[str, dict[str, bytes]],
):
    wanted = {name: expected[name] for name in variants}
    assert min(sum(path.endswith(".parquet") for path in found) for found in wanted.values()) >= 2
    on_s3 = data.write_scored(s3.url("scored"), s3.storage, scored_rows, 80)
    for engine in ("plain", "ray"):
        output = s3.url(engine)
        config = data.select_config(on_s3, output, s3.storage, select={"engine": engine}, sweep=sweep_of(variants))
        select_subsets(prepare_select(config))
        assert_same(output, s3.storage, wanted)
    called = [api.select(scored, fraction=0.4, engine=engine) for engine in ("plain", "ray")]
    assert called[0].to_arrow().equals(called[1].to_arrow())
    assert called[0].report == called[1].report


@pytest.mark.parametrize("variants", BOTH)
@pytest.mark.parametrize("shard_rows", [5, 1000])
def test_layout_of_the_scored_dataset_moves_no_byte(
    shard_rows: int,
    variants: dict[str, dict],
    scored_rows: pa.Table,
    expected: dict[str, dict[str, bytes]],
    tmp_path: Path,
):
    scored = data.write_scored(tmp_path / "scored", Storage(), scored_rows, shard_rows)
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "out", sweep=sweep_of(variants))))
    assert_same(tmp_path / "out", Storage(), {name: expected[name] for name in variants})


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_of_a_sweep_equals_the_single_run(
    name: str, scored: str, expected: dict[str, dict[str, bytes]], tmp_path: Path
):
    config = data.select_config(scored, tmp_path / "single", **VARIANTS[name])
    assert next(iter(select_only(config)))
    assert data.objects(tmp_path / "single") == expected[name]


def test_best_rows_are_those_of_a_computation_by_hand(scored: str, scored_rows: pa.Table, tmp_path: Path):
    [report] = select_subsets(prepare_select(data.select_config(scored, tmp_path / "out")))
    ranked, scores = data.potentials(data.candidates(scored_rows))
    k = math.floor(0.4 * len(ranked))
    rows = data.rows_of(tmp_path / "out")
    assert {row[names.ID] for row in rows} == data.best_ids([row[names.ID] for row in ranked], scores, k)
    assert report["selection"]["k"] == len(rows) == k
    by_id = dict(zip((row[names.ID] for row in ranked), scores, strict=True))
    assert [row[names.POTENTIAL] for row in rows] == pytest.approx([by_id[row[names.ID]] for row in rows])


def test_sweep_run_again_touches_nothing_and_report_shows_every_variant(scored: str, tmp_path: Path):
    config = data.select_config(scored, tmp_path / "out", sweep=SWEEP[:4])
    first = list(select_only(config))
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert list(select_only(config)) == first
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert len(list(report_only(config))) == 4
    assert [report["selection"]["select"]["fraction"] for report in load_reports(config)] == [0.4, 0.3, 0.8, 0.4]
    for variant in SWEEP[:4]:
        assert any(str(tmp_path / "out" / variant["name"]) in text for text in first)


def test_sweep_goes_on_where_some_variants_are_done(scored: str, tmp_path: Path, expected: dict[str, dict[str, bytes]]):
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "out", sweep=SWEEP[1:3])))
    reports = select_subsets(prepare_select(data.select_config(scored, tmp_path / "out", sweep=SWEEP[:4])))
    assert_same(tmp_path / "out", Storage(), {variant["name"]: expected[variant["name"]] for variant in SWEEP[:4]})
    assert reports == load_reports(data.select_config(scored, tmp_path / "out", sweep=SWEEP[:4]))


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ([{"name": "a", "select": {"fractoin": 0.1}}], "fraction"),
        ([{"name": "a", "metric": {"name": "potentail"}}], "metric.name"),
        ([{"name": "a", "select": {"fraction": 1.5}}], "select.fraction"),
        ([{"name": "a", "selct": {"fraction": 0.5}}], "selct"),
        ([{"name": "a"}, {"name": "a", "select": {"k": 3}}], "a name twice"),
        ([{"name": "../a"}], "sweep"),
        ([{"name": "a", "metric": {"weight": -1}}], "metric.weight"),
    ],
)
def test_variant_that_is_wrong_is_one_clear_error(sweep: list[dict], says: str, scored: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        data.select_config(scored, tmp_path / "out", sweep=sweep)
    assert says in str(error.value)
    assert "sweep, variant a: " in str(error.value) or "sweep" in says or "sweep" in str(error.value)
    assert "pydantic" not in str(error.value)
    assert "validation error" not in str(error.value)
    assert len(str(error.value).splitlines()) == 2, str(error.value)


def test_report_before_select_names_the_subset_that_is_missing(scored: str, tmp_path: Path):
    config = data.select_config(scored, tmp_path / "out", sweep=SWEEP[:2])
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "out", sweep=SWEEP[:1])))
    with pytest.raises(AlignpotError, match=r"out/quotas holds no dataset of kind subset.*alignpot select"):
        list(report_only(config))

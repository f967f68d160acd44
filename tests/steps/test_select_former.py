"""The rule of a former selection applied to other rows: its statistics and thresholds decide alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema as names
from pipeline.config import Storage
from pipeline.errors import AlignpotError, ConfigError, FingerprintError
from pipeline.steps.select import prepare_select, select_subsets
from tests.fixtures_storage import S3Server
from tests.steps import scored_data as data
from tests.steps.conftest import Ended


@pytest.fixture(scope="module")
def new_rows() -> pa.Table:
    """Rows whose rewards are far better than those of the former dataset."""
    return data.scored_table(300, seed=9, tag="new", shift=1.5)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, new_rows: pa.Table) -> str:
    return data.write_scored(tmp_path_factory.mktemp("new") / "data", Storage(), new_rows, 40)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory, scored: str) -> Path:
    """The best 40 percent of the former dataset."""
    output = tmp_path_factory.mktemp("former") / "subset"
    select_subsets(prepare_select(data.select_config(scored, output)))
    return output


def applied(scored: str, output: Path, manifest: Path | str, **given: Any) -> list[dict[str, Any]]:
    """Rows of the subset that the former selection makes of `scored`."""
    given["select"] = {"stats_from": str(manifest), **given.get("select", {})}
    select_subsets(prepare_select(data.select_config(scored, output, **given)))
    return data.rows_of(output)


def old_scores(old: list[dict[str, Any]], rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The rows that can be ranked, and their potential under the means and spreads of the old ones."""
    ranked = [row for row in rows if not np.isnan(data.explicit_of(row))]
    of = [np.array([data.explicit_of(row) for row in each]) for each in (data.potentials(old)[0], ranked)]
    im = [np.abs([data.implicit_of(row) for row in each]) for each in (data.potentials(old)[0], ranked)]
    return ranked, (of[1] - of[0].mean()) / of[0].std() - (im[1] - im[0].mean()) / im[0].std()


def test_new_rows_are_kept_by_the_old_statistics_and_threshold(
    scored_rows: pa.Table, new_rows: pa.Table, new: str, former: Path, tmp_path: Path
):
    old = data.candidates(scored_rows)
    threshold = np.sort(data.potentials(old)[1])[-data.read_json(former, "report.json")["selection"]["k"]]
    ranked, scores = old_scores(old, data.candidates(new_rows))
    wanted = {row[names.ID] for row, score in zip(ranked, scores, strict=True) if score >= threshold}
    rows = applied(new, tmp_path / "out", former / "_SUCCESS.json")
    assert {row[names.ID] for row in rows} == wanted
    assert len(rows) > 0.6 * len(ranked), "the new rows are better, so more than 40 percent of them are kept"
    by_id = dict(zip((row[names.ID] for row in ranked), scores, strict=True))
    assert [row[names.POTENTIAL] for row in rows] == pytest.approx([by_id[row[names.ID]] for row in rows])
    selection = data.read_json(tmp_path / "out", "report.json")["selection"]
    assert (selection["k"], selection["num_ranked"]) == (len(rows), len(ranked))
    assert selection["fitted"] == data.read_json(former, "report.json")["selection"]["fitted"]


def test_rows_are_kept_whatever_other_rows_come_with_them(new_rows: pa.Table, new: str, former: Path, tmp_path: Path):
    whole = {row[names.ID] for row in applied(new, tmp_path / "whole", former / "_SUCCESS.json")}
    halves = []
    for name, rows in (("a", new_rows.slice(0, 150)), ("b", new_rows.slice(150))):
        half = data.write_scored(tmp_path / name, Storage(), rows, 20)
        halves.append({row[names.ID] for row in applied(half, tmp_path / f"out-{name}", former / "_SUCCESS.json")})
    assert halves[0] | halves[1] == whole
    assert all(halves)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"metric": {"normalise": "robust", "weight": "auto"}},
        {"metric": {"name": "sigma-gap"}},
        {"metric": {"name": "bees-mul"}},
        {"metric": {"name": "random"}, "select": {"seed": 3}},
        {"select": {"labels": "swap", "min_score": -0.2, "max_score": 1.1}},
        {"select": {"labels": "drop", "k": 30}},
        {"select": {"group_by": data.TOPIC, "quotas": {"math": 1, "code": 2}, "k": 45}},
    ],
    ids=str,
)
def test_applied_to_its_own_dataset_it_keeps_the_same_rows(given: dict[str, Any], scored: str, tmp_path: Path):
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "former", **given)))
    same = {name: section for name, section in given.items() if name != "select"}
    rows = applied(scored, tmp_path / "again", tmp_path / "former" / "_SUCCESS.json", **same)
    assert rows == data.rows_of(tmp_path / "former")
    first, again = (data.read_json(tmp_path / name, "report.json")["selection"] for name in ("former", "again"))
    assert first["id_digest"] == again["id_digest"]
    assert {**first, "excluded": 0}.keys() == {**again, "excluded": 0}.keys()


def test_groups_keep_their_own_thresholds(
    scored: str, scored_rows: pa.Table, new: str, new_rows: pa.Table, tmp_path: Path
):
    rule = {"group_by": data.TOPIC, "quotas": {"math": 1, "chat": 1}, "k": 40}
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "former", select=rule)))
    old = data.candidates(scored_rows)
    ranked, scores = data.potentials(old)
    new_ranked, new_scores = old_scores(old, data.candidates(new_rows))
    wanted = set()
    for topic in ("math", "chat"):
        threshold = np.sort([s for row, s in zip(ranked, scores, strict=True) if row[data.TOPIC] == topic])[-20]
        wanted |= {
            row[names.ID]
            for row, score in zip(new_ranked, new_scores, strict=True)
            if row[data.TOPIC] == topic and score >= threshold
        }
    rows = applied(new, tmp_path / "out", tmp_path / "former" / "_SUCCESS.json")
    assert {row[names.ID] for row in rows} == wanted


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("local_ray")
def test_on_s3_with_ray_the_same_bytes(new: str, new_rows: pa.Table, former: Path, s3: S3Server, tmp_path: Path):
    applied(new, tmp_path / "plain", former / "_SUCCESS.json")
    manifest = f"{s3.url('former')}/_SUCCESS.json"
    from pipeline.data.place import Place

    place = Place.open(manifest, s3.storage)
    place.fs.pipe_file(place.root, (former / "_SUCCESS.json").read_bytes())
    scored, output = data.write_scored(s3.url("new"), s3.storage, new_rows, 40), s3.url("out")
    chosen = {"stats_from": manifest, "engine": "ray"}
    select_subsets(prepare_select(data.select_config(scored, output, s3.storage, select=chosen)))
    assert data.objects(output, s3.storage) == data.objects(tmp_path / "plain")


def test_nothing_good_enough_gives_an_empty_subset_that_loads(
    command: Callable[..., Ended], former: Path, tmp_path: Path
):
    poor = data.write_scored(tmp_path / "poor", Storage(), data.scored_table(50, tag="poor", shift=-60.0), 20)
    sections = data.sections(poor, tmp_path / "out")
    del sections["select"]
    path = data.write_config(tmp_path / "config.yaml", sections)
    ended = command("select", path, "--stats-from", former / "_SUCCESS.json", "--set", "select.engine=plain")
    assert ended.code == 0, ended.err
    assert data.rows_of(tmp_path / "out") == []
    [file] = (tmp_path / "out" / "parquet").iterdir()
    assert pq.read_table(file).num_rows == 0
    assert names.POTENTIAL in pq.read_schema(file).names
    assert command("report", path, "--set", f"select.stats_from={former / '_SUCCESS.json'}").code == 0


def test_command_line_option_equals_the_key(command: Callable[..., Ended], new: str, former: Path, tmp_path: Path):
    applied(new, tmp_path / "key", former / "_SUCCESS.json")
    sections = data.sections(new, tmp_path / "option", select={"stats_from": None})
    path = data.write_config(tmp_path / "config.yaml", sections)
    ended = command("select", path, "--stats-from", former / "_SUCCESS.json")
    assert ended.code == 0, ended.err
    assert data.objects(tmp_path / "option") == data.objects(tmp_path / "key")


def test_keys_of_the_former_selection_may_stay_in_the_config(new: str, former: Path, tmp_path: Path):
    applied(new, tmp_path / "bare", former / "_SUCCESS.json")
    applied(new, tmp_path / "same", former / "_SUCCESS.json", select={"fraction": 0.4, "labels": "keep"})
    assert data.objects(tmp_path / "same") == data.objects(tmp_path / "bare")


def test_sweep_may_apply_several_former_selections(scored: str, new: str, former: Path, tmp_path: Path):
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "small", select={"fraction": 0.1})))
    sweep = [
        {"name": "large", "select": {"stats_from": str(former / "_SUCCESS.json")}},
        {"name": "small", "select": {"stats_from": str(tmp_path / "small" / "_SUCCESS.json")}},
        {"name": "own", "select": {"fraction": 0.4}},
    ]
    select_subsets(prepare_select(data.select_config(new, tmp_path / "out", sweep=sweep)))
    applied(new, tmp_path / "single", former / "_SUCCESS.json")
    assert data.objects(tmp_path / "out" / "large") == data.objects(tmp_path / "single")
    sizes = [len(data.rows_of(tmp_path / "out" / variant["name"])) for variant in sweep]
    assert sizes[0] > sizes[1] > 0
    assert sizes[2] == data.read_json(tmp_path / "out" / "own", "report.json")["selection"]["num_ranked"] * 4 // 10


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objective": {"name": "dpo", "beta": 0.2}}, ["objective", "0.1", "0.2"]),
        ({"objective": {"name": "simpo"}}, ["objective", "simpo"]),
        ({"metric": {"weight": 2.0}}, ["metric", "2.0"]),
        ({"metric": {"normalise": "robust"}}, ["metric", "robust"]),
        ({"select": {"labels": "swap"}}, ["select.labels", "keep", "swap"]),
        ({"select": {"seed": 5}}, ["select.seed", "5"]),
        ({"select": {"group_by": data.TOPIC}}, ["select.group_by", data.TOPIC]),
        ({"select": {"fraction": 0.3}}, ["select.fraction", "0.4", "0.3"]),
        ({"select": {"k": 40}}, ["select.k", "40"]),
        ({"select": {"per_prompt": 2}}, ["select.per_prompt", "2"]),
    ],
    ids=str,
)
def test_other_settings_are_refused(given: dict[str, Any], says: list[str], new: str, former: Path, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        applied(new, tmp_path / "out", former / "_SUCCESS.json", **given)
    for part in ("stats_from", *says):
        assert part in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "given",
    [{"select": {"per_prompt": 1}}, {"select": {"deduplicate": "exact"}}, {"metric": {"normalise": "rank"}}],
    ids=str,
)
def test_former_selection_that_compared_rows_is_refused(given: dict[str, Any], scored: str, new: str, tmp_path: Path):
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "former", **given)))
    metric = {"metric": given["metric"]} if "metric" in given else {}
    with pytest.raises(
        ConfigError, match=r"per_prompt, deduplicate or normalise: rank\..*cannot be applied row by row"
    ):
        applied(new, tmp_path / "out", tmp_path / "former" / "_SUCCESS.json", **metric)


def without(section: str, key: str) -> Callable[[dict[str, Any]], bytes]:
    def damage(manifest: dict[str, Any]) -> bytes:
        node = manifest["extra"]["selection"]
        del (node if section == "" else node[section])[key]
        return json.dumps(manifest).encode()

    return damage


DAMAGES: dict[str, Callable[[dict[str, Any]], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "cut short": lambda manifest: json.dumps(manifest).encode()[:-9],
    "a list": lambda _: b"[1, 2]",
    "no selection": lambda manifest: json.dumps({**manifest, "extra": {}}).encode(),
    "extra is null": lambda manifest: json.dumps({**manifest, "extra": None}).encode(),
    "no threshold": without("", "threshold"),
    "no statistics": without("", "fitted"),
    "no normalisers": without("fitted", "normalisers"),
    "no metric": without("", "metric"),
    "no rule": without("", "select"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_manifest_that_is_missing_or_damaged_is_named(damage: str, new: str, former: Path, tmp_path: Path):
    path = tmp_path / "former.json"
    content = DAMAGES[damage](json.loads((former / "_SUCCESS.json").read_text()))
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AlignpotError) as error:
        applied(new, tmp_path / "out", path)
    assert "stats_from" in str(error.value) or str(path) in str(error.value)
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()


def test_manifest_of_a_scored_dataset_is_refused(scored: str, new: str, tmp_path: Path):
    with pytest.raises(AlignpotError, match="holds no selection"):
        applied(new, tmp_path / "out", f"{scored}/_SUCCESS.json")


def test_another_manifest_on_the_same_output_is_refused(scored: str, new: str, former: Path, tmp_path: Path):
    applied(new, tmp_path / "out", former / "_SUCCESS.json")
    copy = tmp_path / "moved.json"
    shutil.copy(former / "_SUCCESS.json", copy)
    applied(new, tmp_path / "out", copy)
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "other", select={"fraction": 0.41})))
    before = data.objects(tmp_path / "out")
    with pytest.raises(FingerprintError, match="stats_from"):
        applied(new, tmp_path / "out", tmp_path / "other" / "_SUCCESS.json")
    with pytest.raises(FingerprintError, match="stats_from"):
        select_subsets(prepare_select(data.select_config(new, tmp_path / "out")))
    assert data.objects(tmp_path / "out") == before


def test_scores_of_another_policy_are_refused(
    new_rows: pa.Table, former: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(data.FINGERPRINT, "policy", {"model": "another"})
    other = data.write_scored(tmp_path / "data", Storage(), new_rows, 40)
    with pytest.raises(FingerprintError, match=r"stats_from: .* other models or settings; what differs: policy"):
        applied(other, tmp_path / "out", former / "_SUCCESS.json")
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_rule_that_kept_nothing_goes_on_keeping_what_is_good_enough(scored: str, new: str, tmp_path: Path):
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "first", select={"min_score": 0.5})))
    wanted = applied(new, tmp_path / "new", tmp_path / "first/_SUCCESS.json")
    bad = data.scored_table(50, seed=3, tag="bad", shift=-90.0)
    nothing = data.write_scored(tmp_path / "bad", Storage(), bad, 40)
    assert applied(nothing, tmp_path / "none", tmp_path / "first/_SUCCESS.json") == []
    again = applied(new, tmp_path / "again", tmp_path / "none/_SUCCESS.json")
    assert [row[names.ID] for row in again] == [row[names.ID] for row in wanted] != []


def test_every_row_is_accounted_for(scored: str, new: str, tmp_path: Path):
    select_subsets(prepare_select(data.select_config(scored, tmp_path / "first", select={"min_score": 0.5})))
    kept = applied(new, tmp_path / "out", tmp_path / "first/_SUCCESS.json")
    selection = data.read_json(tmp_path / "out", "report.json")["selection"]
    assert selection["excluded"]["outside_score_band"] == selection["num_ranked"] - len(kept)
    assert selection["num_candidates"] == selection["k"] == len(kept)

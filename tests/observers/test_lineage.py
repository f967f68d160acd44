"""Events of OpenLineage as a lineage service gets them from real commands; none unless a transport is set up."""

import logging
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import api
from pipeline.commands import run_all, score_only, select_only
from pipeline.config import Config
from pipeline.errors import AlignpotError, SourceError, StorageError, TemporaryError, TooManyDroppedError
from pipeline.observers import lineage
from pipeline.observers.facts import Name
from pipeline.observers.observed import observed
from pipeline.termination import heed_sigterm
from tests.hub_server import Hub
from tests.observers.conftest import NUM_ROWS, SECRET, Event

Events = Callable[[], list[Event]]
Job = Callable[..., Config]


def states(found: list[Event]) -> list[str]:
    """The states in order, all of one run of one job, each event as the specification wants it."""
    assert len({(event["run"]["runId"], event["job"]["namespace"], event["job"]["name"]) for event in found}) == 1
    for event in found:
        uuid.UUID(event["run"]["runId"])
        assert event["schemaURL"].endswith("#/$defs/RunEvent")
        assert event["job"]["facets"]["jobType"]["processingType"] == "BATCH"
        assert len({(data["namespace"], data["name"]) for data in event["outputs"]}) == len(event["outputs"])
    return [event["eventType"] for event in found]


def names(data: list[dict[str, Any]]) -> list[str]:
    assert {each["namespace"] for each in data} == {"file"}
    return [Path(each["name"]).name for each in data]


def rows(data: dict[str, Any]) -> int | None:
    [facets] = [data[name] for name in ("inputFacets", "outputFacets") if name in data]
    [facet] = facets.values() or [{}]
    return facet.get("rowCount")


def origins(data: dict[str, Any], column: str) -> dict[str, str]:
    """The columns that one comes from, with the kind of transformation; all of datasets of one name."""
    fields = data["facets"]["columnLineage"]["fields"][column]["inputFields"]
    return {f"{Path(each['name']).name}.{each['field']}": each["transformations"][0]["subtype"] for each in fields}


def deciders(data: dict[str, Any]) -> set[str]:
    fields = data["facets"]["columnLineage"]["dataset"]
    return {f"{Path(each['name']).name}.{each['field']}" for each in fields}


def test_a_run_with_a_sweep_tells_its_datasets_rows_and_columns(job: Job, events: Events) -> None:
    sweep = [{"name": "half", "select": {"fraction": 0.5}}, {"name": "two", "select": {"k": 2}}]
    config = job(sweep=sweep, source={"where": 'topic == "x"'})
    list(run_all(config))
    found = events()
    assert states(found) == ["START", "COMPLETE"]
    for event in found:
        assert names(event["inputs"]) == ["pairs.parquet"]
        assert names(event["outputs"]) == ["scored", "half", "two"]
    [source], [scored, half, two] = found[1]["inputs"], found[1]["outputs"]
    assert [rows(data) for data in (source, scored, half, two)] == [NUM_ROWS, NUM_ROWS, 9, 2]
    assert found[0]["inputs"] == found[1]["inputs"]
    assert rows(found[0]["outputs"][0]) is None
    [prompt] = [field for field in half["facets"]["schema"]["fields"] if field["name"] == "prompt"]
    assert [below["name"] for below in prompt["fields"][0]["fields"]] == ["role", "content"]
    assert {"key", "topic"} <= {field["name"] for field in source["facets"]["schema"]["fields"]}
    assert len({data["facets"]["version"]["datasetVersion"] for data in (source, scored, half, two)}) == 4
    for data in (scored, half):
        assert origins(data, "topic") == {"pairs.parquet.topic": "IDENTITY"}
        assert origins(data, "chosen") == {"pairs.parquet.chosen": "TRANSFORMATION"}
        assert origins(data, "id") == {"pairs.parquet.key": "TRANSFORMATION"}
    rewards = {"pairs.parquet.reward_chosen": "TRANSFORMATION", "pairs.parquet.reward_rejected": "TRANSFORMATION"}
    assert origins(half, "potential") == origins(half, "margin_explicit") == rewards
    assert deciders(scored) == {"pairs.parquet.topic"}
    assert deciders(half) == {"pairs.parquet.topic", "pairs.parquet.key", *rewards}
    for data in (scored, half):
        columns = {field["name"] for field in data["facets"]["schema"]["fields"]}
        assert {*data["facets"]["columnLineage"]["fields"]} <= columns


def test_a_run_again_has_the_run_id_of_the_work_and_another_output_is_another_run(
    job: Job, events: Events, tmp_path: Path
) -> None:
    ids = []
    for output in ("subset", "subset", "other"):
        list(run_all(job(output={"path": str(tmp_path / output)})))
        found = events()
        assert states(found) == ["START", "COMPLETE"]
        ids.append(found[0]["run"]["runId"])
    assert ids[0] == ids[1] != ids[2]


def test_select_reads_the_scored_dataset_and_score_makes_it(job: Job, events: Events) -> None:
    list(score_only(job()))
    [_, scored] = events()
    list(select_only(job(source=None, select={"labels": "swap"})))
    found = events()
    assert states(found) == ["START", "COMPLETE"]
    [data], [subset] = found[1]["inputs"], found[1]["outputs"]
    assert [scored["job"]["name"].split(".")[0], found[1]["job"]["name"].split(".")[0]] == ["score", "select"]
    [made] = scored["outputs"]
    assert (data["name"], data["facets"]["version"]) == (made["name"], made["facets"]["version"])
    assert origins(subset, "topic") == {"scored.topic": "IDENTITY"}
    sides = {"scored.chosen": "TRANSFORMATION", "scored.rejected": "TRANSFORMATION"}
    assert origins(subset, "chosen") == sides


def test_every_source_of_a_mix_is_an_input(job: Job, events: Events, tmp_path: Path) -> None:
    path = str(tmp_path / "pairs.parquet")
    (tmp_path / "more.jsonl").write_text(
        '{"question": "q", "chosen": "a", "rejected": "b", "chosen_score": 2.0, "rejected_score": 1}\n'
    )
    sources = [{"name": "a", "path": path}, {"name": "b", "path": str(tmp_path / "more.jsonl")}]
    list(score_only(job(source=None, sources=sources)))
    [_, found] = events()
    assert names(found["inputs"]) == ["pairs.parquet", "more.jsonl"]
    assert [rows(data) for data in found["inputs"]] == [NUM_ROWS, 1]
    assert [*origins(found["outputs"][0], "prompt")] == ["pairs.parquet.prompt", "more.jsonl.question"]
    assert "more.jsonl.chosen_score" in origins(found["outputs"][0], "reward_chosen")


def test_too_many_dropped_rows_fail_and_the_same_run_completes_under_a_higher_limit(job: Job, events: Events) -> None:
    good = '{"prompt": "q", "chosen": "a%d", "rejected": "b", "reward_chosen": 1, "reward_rejected": 0}\n'
    bad = f'{{"prompt": "{SECRET}", "chosen": null, "rejected": "b"}}\n'
    Path("bad.jsonl").write_text(good % 1 + good % 2 + bad)
    keys = {"source": {"path": "bad.jsonl", "id_column": None, "passthrough": []}, "select": {"fraction": 0.5}}
    with pytest.raises(TooManyDroppedError):
        list(run_all(job(**keys)))
    failed = events()
    assert states(failed) == ["START", "FAIL"]
    assert "1 of 3 rows were dropped" in failed[1]["run"]["facets"]["errorMessage"]["message"]
    assert [rows(data) for data in failed[1]["outputs"]] == [3, None]
    list(run_all(job(**keys, run={"max_dropped": 0.5})))
    assert states([*failed, *events()]) == ["START", "FAIL", "START", "COMPLETE"]


def test_storage_that_fails_ends_a_run_that_goes_on_as_the_same(job: Job, events: Events, tmp_path: Path) -> None:
    config = job()
    texts = run_all(config)
    next(texts)
    (tmp_path / "subset").mkdir(exist_ok=True)
    (tmp_path / "subset/hf").write_text("a file where a folder should be")
    with pytest.raises(AlignpotError):
        list(texts)
    failed = events()
    assert states(failed) == ["START", "FAIL"]
    (tmp_path / "subset/hf").unlink()
    list(run_all(config))
    assert states([*failed, *events()]) == ["START", "FAIL", "START", "COMPLETE"]


def test_what_fails_before_the_work_begins_is_told_with_the_names_of_the_config(job: Job, events: Events) -> None:
    with pytest.raises((SourceError, StorageError)):
        list(run_all(job(source={"path": "nowhere"})))
    found = events()
    assert states(found) == ["START", "FAIL"]
    assert names(found[1]["inputs"]) == ["nowhere"]
    assert names(found[1]["outputs"]) == ["scored", "subset"]


def test_a_run_that_is_left_is_aborted(job: Job, events: Events) -> None:
    texts = run_all(job())
    next(texts)
    texts.close()
    assert states(events()) == ["START", "ABORT"]


def test_a_run_that_a_scheduler_ends_is_aborted(events: Events) -> None:
    before = signal.getsignal(signal.SIGTERM)
    heed_sigterm()
    try:
        with pytest.raises(TemporaryError), observed("score", "/scored", {}):
            signal.raise_signal(signal.SIGTERM)
    finally:
        heed_sigterm()  # forgets the signal
        signal.signal(signal.SIGTERM, before)
    found = events()
    assert states(found) == ["START", "ABORT"]
    assert "SIGTERM" in found[1]["run"]["facets"]["errorMessage"]["message"]


def test_an_error_of_a_library_is_told_by_its_type_alone(events: Events) -> None:
    with pytest.raises(ValueError, match=SECRET), observed("score", "/scored", {}):
        raise ValueError(SECRET)
    assert events()[1]["run"]["facets"]["errorMessage"]["message"] == "ValueError"


def test_what_calls_make_is_told_only_if_it_is_kept(job: Job, events: Events, tmp_path: Path) -> None:
    job()
    columns = {"reward": "columns", "objective": "simpo"}
    in_memory = api.score(str(tmp_path / "pairs.parquet"), **columns)
    api.select(in_memory.to_arrow(), k=3, metric="explicit").write(tmp_path / "rows")
    assert events() == []
    kept = api.score(str(tmp_path / "pairs.parquet"), path=tmp_path / "kept", **columns)
    scored = events()
    assert states(scored) == ["START", "COMPLETE"]
    assert names(scored[1]["outputs"]) == ["kept"]
    api.select(kept, k=3, metric="explicit").write(tmp_path / "best")
    selected = events()
    assert states(selected) == ["START", "COMPLETE"]
    assert [names(selected[1]["inputs"]), names(selected[1]["outputs"])] == [["kept"], ["best"]]
    assert rows(selected[1]["outputs"][0]) == 3
    assert origins(selected[1]["outputs"][0], "id") == {"kept.id": "IDENTITY"}


def test_a_source_on_the_hub_has_its_commit_as_version(job: Job, events: Events, hub: Hub, tmp_path: Path) -> None:
    job()
    commit = hub.add("org/prefs", {"data/train.parquet": (tmp_path / "pairs.parquet").read_bytes()})
    list(score_only(job(source={"path": "hf://datasets/org/prefs"})))
    [source] = events()[1]["inputs"]
    assert (source["namespace"], source["name"]) == ("hf://datasets", "org/prefs")
    assert source["facets"]["version"]["datasetVersion"] == commit


def test_rows_are_told_on_the_way(job: Job, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "RUNNING_S", 0.0)
    list(run_all(job(run={"shard_rows": 4})))
    found = events()
    assert states(found) == ["START", "RUNNING", "RUNNING", "RUNNING", "RUNNING", "COMPLETE"]
    assert [rows(event["outputs"][0]) for event in found[1:5]] == [4, 8, 12, 16]


def test_an_export_tells_what_it_reads_and_writes(job: Job, events: Events, tmp_path: Path) -> None:
    list(run_all(job()))
    events()
    api.export(tmp_path / "subset", "trl", tmp_path / "out")
    found = events()
    assert states(found) == ["START", "COMPLETE"]
    assert [names(found[1]["inputs"]), names(found[1]["outputs"])] == [["subset"], ["out"]]
    assert rows(found[1]["inputs"][0]) == rows(found[1]["outputs"][0]) == 8


def test_a_publication_tells_the_table_and_so_does_a_run_that_publishes(
    job: Job, events: Events, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    list(run_all(job(output={"path": str(tmp_path / "subset"), "table": {"kind": "delta", "path": str(table)}})))
    assert names(events()[-1]["outputs"]) == ["scored", "subset", "table"]
    api.publish(tmp_path / "scored", f"lance://{tmp_path / 'rows'}")
    found = events()
    assert states(found) == ["START", "COMPLETE"]
    assert [names(found[1]["inputs"]), names(found[1]["outputs"])] == [["scored"], ["rows"]]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, None),
        ({"OPENLINEAGE_URL": "http://127.0.0.1:9", "OPENLINEAGE_DISABLED": "true"}, None),
        ({"OPENLINEAGE_CONFIG": "empty.yml"}, "without a transport"),
        ({"OPENLINEAGE__TRANSPORT__TYPE": "pigeon"}, "cannot be set up"),
        ({"OPENLINEAGE__TRANSPORT__TYPE": "file", "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": "no/such/folder/e"},
         "cannot be sent"),
    ],
)  # fmt: skip
def test_without_a_transport_that_works_the_run_goes_on_and_prints_the_same(
    job: Job, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str], told: str | None,
) -> None:  # fmt: skip
    Path("empty.yml").write_text("facets: {}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "pipeline.observers"):
        assert len(list(run_all(job()))) == 3
    assert capfd.readouterr().out == ""
    assert [told in record.message for record in caplog.records] == ([True] if told else [])


def test_a_missing_library_is_named_with_its_pip_line(
    job: Job, events: Events, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    list(run_all(job()))
    [record] = [record for record in caplog.records if record.name.startswith("pipeline.observers")]
    assert "pip install 'alignpot[lineage]'" in record.message
    assert events() == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/a/b/", ("s3://bucket", "a/b")),
        ("s3a://bucket/a", ("s3://bucket", "a")),
        ("gs://bucket/a", ("gs://bucket", "a")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("abfss://data@account.dfs.core.windows.net/a", ("abfss://data@account.dfs.core.windows.net", "a")),
        ("hf://datasets/org/name@main/data/x.parquet", ("hf://datasets", "org/name/data/x.parquet")),
        ("hf://datasets/org/name", ("hf://datasets", "org/name")),
        ("file:///a/b", ("file", "/a/b")),
        ("delta://s3://bucket/a@3", ("s3://bucket", "a")),
        ("lance:///a/b@v1", ("file", "/a/b")),
        ("iceberg://catalog/space.name@123", ("iceberg://catalog", "space.name")),
        ("/a/../b", ("file", "/b")),
    ],
)
def test_datasets_are_named_as_openlineage_names_them(url: str, name: tuple[str, str]) -> None:
    assert Name.of(url) == name

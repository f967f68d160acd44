"""No wrong row with exit code 0: sources replaced under a run, damaged files of ours, and what `verify` finds."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.commands import report_only, score_only
from pipeline.config import Config, Storage, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.verify import verify
from pipeline.errors import AlignpotError, IntegrityError, SourceError
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import open_scored
from pipeline.steps.work import Apply, Stage
from tests.fixtures_storage import READER_KEY, READER_SECRET_KEY, S3Server
from tests.steps.conftest import Ended, make_config, run_all, write_jsonl

NUM_FLIPS = int(os.environ.get("ALIGNPOT_FLIPS", "18"))  # a thousand when the formats change


def config_of(folder: Path, source: Path | str, **sections) -> Config:
    base = {"metric": {"name": "random"}, "run": {"engine": "plain", "shard_rows": 4}}
    return make_config(folder, source, **base | sections)


def during(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have something happen while the shard of this number, counted from one, is worked on."""
    seen = [0]

    def stage(table: pa.Table) -> pa.Table:
        seen[0] += 1
        if seen[0] == number:
            act()
        return table

    build: Callable[[], Apply] = lambda: stage  # noqa: E731
    monkeypatch.setattr("pipeline.steps.score.score_stages", lambda config: [Stage(name="tokenise", build=build)])


def all_ids(config: Config) -> list[str]:
    return [row for table in open_scored(config).tables(["id"]) for row in table["id"].to_pylist()]


@pytest.mark.parametrize("how", ["renamed", "overwritten"])
def test_rows_of_a_file_that_came_and_went_are_in_no_dataset(
    how: str, tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    source = write_jsonl(tmp_path / "in" / "pairs.jsonl", pairs)
    other = write_jsonl(tmp_path / "other.jsonl", [{**pair, "id": f"other-{pair['id']}"} for pair in pairs])
    old, config = source.read_bytes(), config_of(tmp_path, source.parent)
    during(monkeypatch, 5, lambda: other.replace(source) if how == "renamed" else shutil.copy(other, source))
    run = prepare_score(config)
    with pytest.raises(IntegrityError, match=r"pairs\.jsonl was replaced since the run was planned"):
        score(*run)
    assert len(list((tmp_path / "scored" / "parts").glob("*.parquet"))) == 5
    with pytest.raises(AlignpotError, match=r"(?s)other settings.*pairs\.jsonl"):
        prepare_score(config)
    source.write_bytes(old)
    assert score(*prepare_score(config))[0].num_shards_done_now == len(pairs) // 4 - 5
    assert all_ids(config) == [pair["id"] for pair in pairs]


def test_touching_the_source_in_mid_run_changes_nothing(
    tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)

    def touch() -> None:
        source.touch()
        source.chmod(0o600)
        (tmp_path / "link").hardlink_to(source)

    during(monkeypatch, 3, touch)
    config = config_of(tmp_path, source)
    score(*prepare_score(config))
    assert all_ids(config) == [pair["id"] for pair in pairs]


def test_object_replaced_in_mid_run_is_refused_on_s3(
    s3: S3Server, tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    url = s3.url("replaced")
    place = Place.open(f"{url}/pairs.jsonl", s3.storage)
    texts = [json.dumps({**pair, "id": f"{pair['id']}-{i}"}) for i in range(200) for pair in pairs]
    place.fs.pipe_file(place.root, "\n".join(texts).encode())  # more than one request of a reader fetches
    config = config_of(
        tmp_path, f"{url}/pairs.jsonl", storage=s3.storage.model_dump(), run={"engine": "plain", "shard_rows": 1000}
    )
    during(monkeypatch, 2, lambda: place.fs.pipe_file(place.root, "\n".join(texts[::-1]).encode()))
    run = prepare_score(config)
    with pytest.raises(IntegrityError, match=r"pairs\.jsonl was replaced"):
        score(*run)
    assert len(list((tmp_path / "scored" / "parts").glob("*.parquet"))) == 2


def test_ids_of_several_contents_are_refused_by_score_however_often(tmp_path: Path, pairs: list[dict]):
    rows = [{**pair, "id": "same" if i in (3, 40) else pair["id"]} for i, pair in enumerate(pairs)]
    config = config_of(tmp_path, write_jsonl(tmp_path / "pairs.jsonl", rows))
    for _ in range(3):
        with pytest.raises(SourceError, match="1 ids stand for rows of different content") as error:
            list(score_only(config))
        assert error.value.exit_code == 2
    assert not (tmp_path / "scored" / "_SUCCESS.json").exists()


def test_finished_run_that_may_only_be_read_is_a_no_op(
    s3: S3Server, tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    url = s3.url("finished")
    config = config_of(
        tmp_path,
        write_jsonl(tmp_path / "pairs.jsonl", pairs),
        storage=s3.storage.model_dump(),
        scored=f"{url}/scored",
        output={"path": f"{url}/subset"},
        run={"engine": "plain", "shard_rows": 30},
    )
    first = run_all(config)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET_KEY)
    again = run_all(config)
    assert "(none now)" in again
    assert first.partition("metric ")[2] == again.partition("metric ")[2] != ""


def written(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(resolved(config)))
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, pairs: list[dict]) -> Path:
    """A finished run in one folder: source, scored dataset, subset in both layouts, config and an export."""
    folder = tmp_path_factory.mktemp("sound")
    run_all(config_of(folder, write_jsonl(folder / "pairs.jsonl", pairs)))
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> tuple[Path, Config]:
    """That run in a folder of its own."""
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    return folder, config_of(folder, folder / "pairs.jsonl")


def test_verify_finds_every_damaged_file(copy: tuple[Path, Config], command: Callable[..., Ended]):
    folder, _ = copy
    for place in ("scored", "subset"):
        ended = command("verify", folder / place)
        assert (ended.code, ended.err) == (0, "")
        assert "all as written" in ended.out
    for path in sorted(
        path for place in ("scored", "subset") for path in (folder / place).rglob("*") if path.is_file()
    ):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        place = next(i for i in range(len(whole) // 2, len(whole)) if whole[i : i + 1].isalnum())
        flipped[place] ^= 4
        for damaged in (whole[: len(whole) // 2], flipped):
            path.write_bytes(damaged)
            ended = command("verify", folder / path.relative_to(folder).parts[0])
            assert ended.code == 1, path
            assert str(path) in ended.err
            assert "Traceback" not in ended.err
        path.unlink()
        assert command("verify", folder / path.relative_to(folder).parts[0]).code in (1, 2), path
        path.write_bytes(whole)
    assert command("verify", folder).code == 2


def test_report_and_export_check_what_they_read(copy: tuple[Path, Config], command: Callable[..., Ended]):
    folder, config = copy
    path = written(folder / "config.yaml", config)
    report = folder / "subset" / "report.json"
    for damaged in (b"{", report.read_bytes().replace(b'"num_', b'"nun_', 1), b"\xff\xfe"):
        report.write_bytes(damaged)
        ended = command("report", path)
        assert (ended.code, ended.out) == (1, "")
        assert "report.json" in ended.err
    shutil.rmtree(folder / "subset" / "parquet")
    ended = command("export", folder / "subset", "--to", "trl", "--output", folder / "export")
    assert ended.code == 1
    assert "parquet" in ended.err


def test_plan_that_leaves_rows_out_is_refused(copy: tuple[Path, Config]):
    folder, config = copy
    (folder / "scored" / "_SUCCESS.json").unlink()
    path = folder / "scored" / "run.json"
    path.write_text(path.read_text().replace('"first_row": 8', '"first_row": 9'))
    with pytest.raises(IntegrityError, match=r"run\.json is damaged"):
        prepare_score(config)


def rows_of(tables: Iterator[pa.Table]) -> list[dict]:
    return [row for table in tables for row in table.to_pylist()]


def everything(folder: Path, config: Config) -> dict[str, object]:
    """What the commands give: each the rows or text, or the error that it ends with."""
    subset = Place.open(str(folder / "subset"), Storage())
    acts: dict[str, Callable[[], object]] = {
        "run": lambda: run_all(config).partition("metric ")[2],
        "scored": lambda: rows_of(open_scored(config).tables(kept_only=False)),
        "report": lambda: [*report_only(config)],
        "subset": lambda: rows_of(Dataset.open(subset, SUBSET).tables()),
        "verify": lambda: verify(subset) and verify(Place.open(config.scored, Storage())) and None,
    }
    found: dict[str, object] = {}
    for name, act in acts.items():
        try:
            found[name] = act()
        except AlignpotError as error:
            found[name] = error
    return found


def test_no_flipped_bit_gives_a_wrong_row_or_a_traceback(copy: tuple[Path, Config]):
    folder, config = copy
    expected = everything(folder, config)
    files = sorted(path for place in ("scored", "subset") for path in (folder / place).rglob("*") if path.is_file())
    chance, num_refused = random.Random(7), 0
    for number in range(NUM_FLIPS):
        unfinished = number % 3 == 0  # the run goes on from what is there
        path = chance.choice([f for f in files if not unfinished or f.parent.name == "parts" or f.name == "run.json"])
        whole, manifest = path.read_bytes(), (folder / "scored" / "_SUCCESS.json")
        closed = manifest.read_bytes()
        if unfinished:
            manifest.unlink()
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found = everything(folder, config)
        wrong = {
            name: got for name, got in found.items() if got != expected[name] and not isinstance(got, AlignpotError)
        }
        assert not wrong, (path, number)
        num_refused += any(isinstance(got, AlignpotError) for got in found.values())
        path.write_bytes(whole)
        manifest.write_bytes(closed)
    assert num_refused > 0.7 * NUM_FLIPS  # the others are bits that no value depends on
    assert everything(folder, config) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.arrow", "pairs.arrows"])
def test_no_flipped_bit_in_a_source_gives_a_wrong_row_or_a_crash(name: str, tmp_path: Path, pairs: list[dict]):
    source = tmp_path / name
    table = pa.Table.from_pylist([{key: pair[key] for key in ("id", "prompt", "chosen", "rejected")} for pair in pairs])
    if name == "pairs.parquet":
        pq.write_table(table, source, write_page_checksum=True, row_group_size=25)
    else:
        new = pa.ipc.new_file if name == "pairs.arrow" else pa.ipc.new_stream
        with new(source, table.schema) as writer:
            writer.write_table(table, max_chunksize=25)
    whole, chance = source.read_bytes(), random.Random(11)
    planned = prepare_score(config_of(tmp_path / "planned", source))
    num_read = 0
    for number in range(NUM_FLIPS // 3):
        damaged = bytearray(whole)
        place = chance.choice([chance.randrange(len(whole)), chance.randrange(3000), -1 - chance.randrange(3000)])
        damaged[place] ^= 1 << chance.randrange(8)
        source.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="was replaced"):
            score(*planned)
        config = config_of(tmp_path / f"flip-{number}", source, run={"engine": "plain", "shard_rows": 16})
        try:
            score(*prepare_score(config))
        except AlignpotError as error:
            assert error.exit_code == 2  # noqa: PT017
            continue
        num_read += 1
        # Arrow's own files have no checksums: what was flipped before a run began is what the file holds.
        if name == "pairs.parquet":
            assert rows_of(open_scored(config).tables(table.column_names)) == table.to_pylist()
    assert num_read < NUM_FLIPS // 3 or name != "pairs.parquet"
    source.write_bytes(whole)
    assert score(*planned)[1].num_kept == len(pairs)

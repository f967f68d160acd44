"""Bad input ends in one clear error with the right exit code, before a model loads, and leaves nothing half-written."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.commands import select_only
from pipeline.config import Storage, resolved
from pipeline.errors import AlignpotError
from pipeline.steps.score import prepare_score
from tests.fixtures_storage import S3Server
from tests.steps.conftest import Ended, make_config, run_all, write_jsonl

COLUMNS = {"policy": {"backend": "columns"}, "reward": {"backend": "columns"}}


@pytest.fixture
def policy(tiny_model_dir: Callable[..., Path]) -> dict:
    return {"model": str(tiny_model_dir("llama", seed=1)), "dtype": "float32"}


def refused(config, *parts: str, exit_code: int = 2) -> AlignpotError:
    with pytest.raises(AlignpotError) as error:
        prepare_score(config)
    assert error.value.exit_code == exit_code
    for part in parts:
        assert part in str(error.value)
    assert not Path(config.scored).exists() or not any(Path(config.scored).iterdir())
    return error.value


def test_missing_source_is_named(tmp_path: Path):
    refused(make_config(tmp_path, tmp_path / "nowhere", **COLUMNS), "nowhere")


def test_empty_dataset_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    refused(make_config(tmp_path, tmp_path / "empty.parquet", **COLUMNS), "empty.parquet")


def test_truncated_and_empty_files_are_all_named_at_once(tmp_path: Path, pairs: list[dict]):
    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.table({name: [row[name] for row in pairs] for name in ("id", "prompt", "chosen", "rejected")})
    pq.write_table(table, folder / "a.parquet")
    (folder / "b.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-100])
    (folder / "c.parquet").write_bytes(b"")
    refused(make_config(tmp_path, folder, **COLUMNS), "b.parquet", "c.parquet")


def test_missing_score_columns_are_named(tmp_path: Path, pairs: list[dict]):
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs]
    source = write_jsonl(tmp_path / "pairs.jsonl", plain)
    no_id = {"source": {"id_column": None}}
    refused(make_config(tmp_path, source, **COLUMNS, **no_id), "policy_logp_chosen")
    explicit = {"reward": {"backend": "columns"}, "metric": {"name": "explicit"}}
    refused(make_config(tmp_path, source, **explicit, **no_id), "reward")


def test_unknown_format_and_passthrough_are_refused(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    random = {"metric": {"name": "random"}}
    refused(make_config(tmp_path, source, source={"format": "mesages"}, **random), "mesages", "messages")
    refused(make_config(tmp_path, source, source={"passthrough": ["no_such"]}, **random), "no_such")
    refused(make_config(tmp_path, source, source={"id_column": "no_such"}, **random), "no_such")


def test_model_that_is_not_there_is_refused(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    config = make_config(tmp_path, source, policy={"model": str(tmp_path / "no-model")}, metric={"name": "implicit"})
    refused(config, "no-model")


def test_model_without_chat_template_is_refused(tmp_path: Path, pairs: list[dict], policy: dict):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in Path(policy["model"]).iterdir():
        if file.name == "chat_template.jinja":
            continue
        data = file.read_bytes()
        if file.name == "tokenizer_config.json":
            settings = {k: v for k, v in json.loads(data).items() if k != "chat_template"}
            data = json.dumps(settings).encode()
        (bare / file.name).write_bytes(data)
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    config = make_config(tmp_path, source, policy={**policy, "model": str(bare)}, metric={"name": "implicit"})
    refused(config, "chat template", "tokens.chat_template")


def test_policy_and_reference_with_other_tokenizers_are_refused(tmp_path: Path, pairs: list[dict], policy: dict):
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(policy["model"]).iterdir():
        data = file.read_bytes()
        if file.name == "tokenizer.json":
            tokenizer = json.loads(data)
            vocab = tokenizer["model"]["vocab"]
            first, second = list(vocab)[300:302]
            vocab[first], vocab[second] = vocab[second], vocab[first]
            data = json.dumps(tokenizer).encode()
        (other / file.name).write_bytes(data)
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    config = make_config(
        tmp_path,
        source,
        policy=policy,
        reference={**policy, "model": str(other)},
        objective={"name": "dpo"},
        metric={"name": "implicit"},
    )
    refused(config, "tokenizer")


def test_same_id_with_other_content_is_an_error_that_names_it(tmp_path: Path, pairs: list[dict]):
    rows = [{**row, "id": "twice" if i < 2 else row["id"]} for i, row in enumerate(pairs)]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = make_config(tmp_path, source, metric={"name": "random"})
    with pytest.raises(AlignpotError, match="twice") as error:
        run_all(config)
    assert error.value.exit_code == 2
    assert not (tmp_path / "subset" / "_SUCCESS.json").exists()


def test_select_before_score_says_what_to_do(tmp_path: Path):
    with pytest.raises(AlignpotError, match="alignpot score") as error:
        list(select_only(make_config(tmp_path, tmp_path / "x", metric={"name": "random"})))
    assert error.value.exit_code == 2


def test_other_selection_on_the_same_output_is_refused_before_scoring(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    run_all(make_config(tmp_path, source, metric={"name": "random"}))
    config = make_config(
        tmp_path, source, metric={"name": "random"}, select={"fraction": 0.2}, scored=str(tmp_path / "other")
    )
    with pytest.raises(AlignpotError, match=r"select\.fraction"):
        run_all(config)
    assert not (tmp_path / "other" / "parts").exists()


def test_more_rows_than_there_are_is_refused_before_scoring(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    with pytest.raises(AlignpotError, match=r"select\.k is 61"):
        run_all(make_config(tmp_path, source, metric={"name": "random"}, select={"fraction": None, "k": 61}))
    assert not (tmp_path / "scored" / "parts").exists()


def test_subset_that_lost_a_file_or_has_other_formats_is_no_finished_subset(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    random = {"metric": {"name": "random"}}
    run_all(make_config(tmp_path, source, **random))
    with pytest.raises(AlignpotError, match="formats"):
        run_all(make_config(tmp_path, source, **random, output={"formats": ["parquet"]}))
    (tmp_path / "subset" / "hf" / "train" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(AlignpotError, match="gone or cut short"):
        run_all(make_config(tmp_path, source, **random))


def test_passthrough_may_begin_with_an_underscore(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "_id": f"key {i}"} for i, row in enumerate(pairs)])
    run_all(make_config(tmp_path, source, source={"passthrough": ["_id"]}, metric={"name": "random"}))
    kept = pq.read_table(next((tmp_path / "subset" / "parquet").glob("*.parquet")))
    assert all(value.startswith("key ") for value in kept["_id"].to_pylist())


@pytest.mark.s3
def test_missing_bucket_and_bad_credentials_are_refused(
    tmp_path: Path, pairs: list[dict], s3: S3Server, monkeypatch: pytest.MonkeyPatch
):
    storage = resolved_storage(s3.storage)
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    missing = make_config(tmp_path, "s3://no-such-bucket-here/pairs.jsonl", metric={"name": "random"}, storage=storage)
    refused(missing, "no-such-bucket-here")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong-secret")
    config = make_config(tmp_path, s3.url() + "/pairs.jsonl", metric={"name": "random"}, storage=storage)
    error = refused(config, s3.bucket)
    assert "canary" not in str(error)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    refused(config, "credentials")


def resolved_storage(storage: Storage) -> dict:
    return storage.model_dump(mode="json")


@pytest.mark.parametrize(
    ("section", "value", "code", "text"),
    [("metric", {"nam": "x"}, 2, "did you mean name?"), ("run", {"max_dropped": 0.0}, 3, "run.max_dropped")],
)
def test_command_line_ends_with_the_code_and_one_message(
    section: str,
    value: dict,
    code: int,
    text: str,
    command: Callable[..., Ended],
    tmp_path: Path,
    pairs: list[dict],
):
    rows = [*pairs, {**pairs[0], "id": "x", "rejected": pairs[0]["chosen"]}]
    config = resolved(make_config(tmp_path, write_jsonl(tmp_path / "pairs.jsonl", rows), metric={"name": "random"}))
    config[section] = {**config[section], **value}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    ended = command("run", path)
    assert ended.code == code
    assert text in ended.err
    assert "Traceback" not in ended.err
    assert rows[0]["chosen"][0]["content"][:20] not in ended.err


def test_a_log_of_json_ends_with_the_error(tmp_path: Path):
    command = [sys.executable, "-m", "pipeline.cli", "--log-json", "score", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ending = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, ending["level"]) == (2, "ERROR")
    assert "none.yaml" in ending["message"]


HOSTILE = "\x1b]0;title\x07\nINFO pipeline.forged: \x9b31m\u202e"


@pytest.mark.parametrize("conflict", [False, True])
def test_text_of_the_data_does_not_act_on_the_terminal(
    command: Callable[..., Ended],
    tmp_path: Path,
    pairs: list[dict],
    monkeypatch: pytest.MonkeyPatch,
    conflict: bool,
):
    monkeypatch.setattr(logging.root, "handlers", [])
    ids = [f"{i // 2 if conflict else i}{HOSTILE}" for i in range(len(pairs) - 1)]
    rows = [{**row, "id": id_} for row, id_ in zip(pairs, [*ids, "x" * 1_000_000], strict=True)]
    write_jsonl(tmp_path / "data" / f"a{HOSTILE}.jsonl", rows)
    (tmp_path / "data" / f"b{HOSTILE}.xyz").write_text("no rows")
    path = tmp_path / "config.yaml"
    config = make_config(tmp_path, tmp_path / "data", metric={"name": "random"}, select={"fraction": 1.0})
    path.write_text(yaml.safe_dump(resolved(config)))
    ended = command("run", path)
    assert ended.code == (2 if conflict else 0)
    printed = (ended.out + ended.err).split("\n")
    assert "ignored 1 file" in ended.err
    assert all(line.isprintable() and len(line) < 2000 for line in printed)
    assert not [line for line in printed if line.startswith("INFO pipeline.forged")]
    if not conflict:
        report = json.loads((tmp_path / "subset" / "report.json").read_text())
        assert {row["id"] for row in report["top"]} < {row["id"] for row in rows}


def test_lines_of_an_error_or_a_log_cannot_be_forged(
    command: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(logging.root, "handlers", [])
    ended = command("inspect", tmp_path / f"no{HOSTILE}")
    logging.getLogger("pipeline.x").warning("b%s", HOSTILE)
    ended_by_key = command("run", "/dev/null", "--set", f"a{HOSTILE}=1")
    assert (ended.code, ended_by_key.code) == (2, 2)
    printed = (ended.err + ended_by_key.err).split("\n")
    assert all(line.isprintable() and not line.startswith("INFO") for line in printed)

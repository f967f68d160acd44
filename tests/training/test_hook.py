"""Training in a process of its own: what comes back, what a death leaves, and commands of the user's."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.config import TorchModel
from pipeline.errors import AlignpotError, ConfigError, TemporaryError
from pipeline.training.hook import train
from pipeline.training.run import run
from tests.training.conftest import rows, save

PYTHON = sys.executable
DEADLINE_S = 60.0


def script(text: str) -> dict:
    """Settings whose command runs Python, with sys.argv dataset, output, policy."""
    return {"method": "command", "command": (PYTHON, "-c", text, "{dataset}", "{output}", "{policy}")}


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_for(condition) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


@pytest.mark.soak
def test_a_policy_comes_back_with_its_summary_and_is_kept(make_job, capfd):
    job = make_job()
    summary = train(job)
    assert (summary["rows"], summary["steps"], summary["method"]) == (8, 2, "simpo")
    assert all(len(summary[name]) == 2 for name in ("loss", "reward_accuracy", "reward_margin"))
    assert {"torch", "transformers", "trl"} <= summary["versions"].keys()
    log = capfd.readouterr().err
    assert "training: step 2/2: loss" in log
    assert not [row for row in rows() for side in ("prompt", "chosen") if row[side][0]["content"] in log]
    assert [path.name for path in job.output.parent.iterdir()] == [job.output.name]
    before = {path.name: path.stat().st_mtime_ns for path in job.output.iterdir()}
    assert train(make_job(max_steps=50)) == summary  # nothing is trained where a policy is
    assert {path.name: path.stat().st_mtime_ns for path in job.output.iterdir()} == before


@pytest.mark.soak
def test_a_killed_training_leaves_nothing_but_hidden_files_and_runs_again(make_job, tmp_path):
    job = make_job(max_steps=100_000)
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    process = subprocess.Popen([PYTHON, "-m", "pipeline.training.run", file], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("step 3/" in line for line in process.stderr)
    process.kill()
    process.wait()
    process.stderr.close()
    left = list(job.output.parent.iterdir())
    assert left
    assert all(path.name.startswith(f".{job.output.name}.training") for path in left)
    assert run(make_job(max_steps=1))["steps"] == 1
    assert [path.name for path in job.output.parent.iterdir()] == [job.output.name]


def test_errors_come_back_as_what_they_were(make_job, capfd):
    with pytest.raises(ConfigError, match=r"^train\.num_gpus is 2; methods dpo and simpo train on one GPU"):
        train(make_job(num_gpus=2))
    assert "ConfigError: train.num_gpus is 2" in capfd.readouterr().err


def test_running_out_of_memory_says_what_to_lower(make_job, monkeypatch):
    from pipeline.training import trl_trainer

    def exhausted(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(trl_trainer, "_load", exhausted)
    monkeypatch.setattr(trl_trainer, "train_with_trl", exhausted)
    with pytest.raises(AlignpotError, match=r"ran out of memory with train.batch_size 4.*Lower train.batch_size"):
        run(make_job())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: pa.array(["SECRET ROW"]).cast(pa.int64()), r"ArrowInvalid at \S+:\d+, in \S+\. The log"),
        (lambda: {}["SECRET ROW"], r"KeyError at test_hook\.py:\d+, in <lambda>\."),
        (lambda: float("SECRET ROW out of memory"), r"ValueError at test_hook\.py:\d+"),
        (lambda: os.open("/dev/full/x", os.O_RDONLY), "ENOTDIR"),
        (lambda: os.close(1_000_000), r"OSError \(Bad file descriptor\) at test_hook\.py"),
    ],
)
def test_an_error_of_a_library_is_told_by_class_and_place(error, message, make_job, monkeypatch, capfd):
    monkeypatch.setattr("pipeline.training.trl_trainer.train_with_trl", lambda *_: error())
    with pytest.raises(AlignpotError, match=message) as raised:
        run(make_job())
    told = str(raised.value) + capfd.readouterr().err
    assert "SECRET ROW" not in told.replace('"SECRET ROW', "")  # but for this file's own lines, which a traceback has
    assert raised.value.__suppress_context__


def test_something_else_in_the_place_of_the_output_is_left_alone(make_job):
    job = make_job()
    job.output.mkdir(parents=True)
    (job.output / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"no training wrote it.*Name another place"):
        train(job)
    assert [path.name for path in job.output.iterdir()] == ["notes.txt"]


COPY = "import shutil, sys; print('copying'); shutil.copytree(sys.argv[3], sys.argv[2])"


def test_a_command_gets_its_words_filled_in_and_its_model_is_published(make_job, capfd):
    job = make_job(**script(COPY))
    summary = train(job)
    assert (
        load_file(job.output / "model.safetensors").keys()
        == load_file(Path(job.policy.model) / "model.safetensors").keys()
    )
    assert summary["method"] == "command"
    assert "copying" in capfd.readouterr().err
    AutoModelForCausalLM.from_pretrained(job.output)


def test_a_command_gets_one_local_dataset(make_job, tmp_path):
    text = f"import datasets, sys; d = datasets.load_from_disk(sys.argv[1]); assert len(d) == 7, d; {COPY}"
    both = (save(rows(4), tmp_path / "first"), save([*rows(4), *rows(3, start=10)], tmp_path / "second"))
    assert run(make_job(**script(text), datasets=both))["method"] == "command"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("raise SystemExit(3)", AlignpotError, "ended with exit code 3"),
        ("", AlignpotError, r"wrote nothing to \{output\}"),
        ("import os, sys; os.mkdir(sys.argv[2])", AlignpotError, "wrote no model.*nothing is there"),
        (
            "import pathlib, sys; p = pathlib.Path(sys.argv[2]); p.mkdir(); (p / 'adapter_config.json').touch()",
            AlignpotError,
            "wrote an adapter",
        ),
        ("raise SystemExit(75)", TemporaryError, "a request to try again"),
        ("import os; os.kill(os.getpid(), 9)", TemporaryError, "signal 9"),
    ],
)
def test_a_command_that_fails_or_leaves_no_model_is_an_error(text, error, message, make_job):
    job = make_job(**script(text))
    with pytest.raises(error, match=message):
        run(job)
    assert list(job.output.parent.iterdir()) == []


def test_a_command_that_is_not_there_or_cannot_be_told_the_policy_is_refused(make_job):
    with pytest.raises(ConfigError, match="no-such-trainer cannot be started"):
        run(make_job(method="command", command=("no-such-trainer", "{dataset}", "{output}")))
    policy = TorchModel(model="org/name", adapter="org/adapter")
    with pytest.raises(ConfigError, match="adapter merged"):
        run(make_job(**script(COPY), policy=policy))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_a_temporary_error(number, make_job):
    job = make_job(**script(f"import os, time; os.kill(os.getppid(), {int(number)}); time.sleep(60)"))
    begin = time.monotonic()
    with pytest.raises(TemporaryError, match=f"killed by signal {int(number)}"):
        train(job)
    assert time.monotonic() - begin < 30  # what the process had started has been ended with it
    assert not job.output.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_training_dies_with_its_parent(how, make_job, tmp_path):
    pid_file = tmp_path / "pid"
    text = (
        f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()) + '.'); time.sleep(600)"
    )
    (tmp_path / "job.json").write_text(make_job(**script(text)).model_dump_json())
    parent_text = (
        "import signal, sys, pathlib\n"
        "from pipeline.training.hook import train; from pipeline.training.job import TrainJob\n"
        # Processes in the background of a shell ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "train(TrainJob.from_json(pathlib.Path(sys.argv[1]).read_text()))"
    )
    parent = subprocess.Popen([PYTHON, "-c", parent_text, tmp_path / "job.json"], stderr=subprocess.DEVNULL)
    wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("."))
    pid = int(pid_file.read_text()[:-1])
    assert is_alive(pid)
    parent.send_signal(how)
    parent.wait(timeout=60)
    wait_for(lambda: not is_alive(pid))


def test_two_runs_of_one_output_train_once(make_job, tmp_path):
    counter = tmp_path / "runs"
    text = f"import time; open({str(counter)!r}, 'a').write('x'); time.sleep(0.5); {COPY}"
    job = make_job(**script(text))
    results: list[dict] = []
    threads = [threading.Thread(target=lambda: results.append(train(job))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "x"
    assert len(results) == 2
    assert results[0] == results[1]

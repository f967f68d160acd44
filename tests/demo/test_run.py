"""What `alignpot demo` lays out, without running it."""

import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from jobs.demo_data.sample_pairs import read_pairs
from pipeline.cli import main
from pipeline.config import Source, load_config, parse_config
from pipeline.demo import run
from pipeline.demo.run import PAIRS_FILE, demo_config, write_demo
from pipeline.errors import ConfigError
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards


def test_demo_config_is_one_that_the_run_command_takes(tmp_path: Path) -> None:
    config = parse_config(demo_config(tmp_path, tmp_path / "policy", tmp_path / "reward"))
    assert set(config.torch_models()) == {"policy", "reward"}
    assert (config.objective.name, config.metric.name) == ("simpo", "potential")
    assert config.select is not None
    assert config.select.fraction == 0.4
    assert config.output is not None
    assert set(config.output.formats) == {"hf", "parquet"}


def test_the_source_reader_takes_every_shipped_pair() -> None:
    source = Source(path=str(PAIRS_FILE), format="messages", id_column="id", passthrough=("label",))
    reader, files = open_source(
        LocalFileSystem(), source.path, source, rewards=False, policy_logps=False, reference_logps=False
    )
    (shard,) = plan_shards(files, 10_000)
    table = reader.read(shard)
    pairs = read_pairs()
    assert table.column("status").unique().to_pylist() == ["kept"]
    for name in ("id", "prompt", "chosen", "rejected", "label"):
        assert table.column(name).to_pylist() == [pair[name] for pair in pairs]


def test_importing_the_demo_loads_no_model_library() -> None:
    code = (
        "import sys, pipeline.demo.models, pipeline.demo.run, jobs.demo_data.sample_pairs, jobs.demo_data.fit_reward;"
        "print({'torch', 'transformers', 'ray', 'vllm', 'datasets'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ensure_smollm2", lambda folder: folder / "policy")
    monkeypatch.setattr(run, "build_reward_model", lambda policy, folder: folder / "reward")


@pytest.mark.usefixtures("no_models")
def test_the_pairs_asked_for_are_spread_over_all_and_keep_their_order(tmp_path: Path) -> None:
    rows = PAIRS_FILE.read_text().splitlines()
    for num_pairs in (1, 100, len(rows)):
        config = load_config(write_demo(tmp_path, num_pairs))
        assert config.source is not None
        picked = (Path(config.source.path) / "pairs.jsonl").read_text().splitlines()
        assert len(picked) == num_pairs
        assert [row for row in rows if row in set(picked)] == picked


@pytest.mark.usefixtures("no_models")
def test_the_usual_pairs_are_of_most_prompts_and_of_every_label(tmp_path: Path) -> None:
    pairs, usual = read_pairs(), read_pairs(write_demo(tmp_path, 100).parent / "pairs" / "pairs.jsonl")
    assert {pair["label"] for pair in usual} == {pair["label"] for pair in pairs}
    prompts, all_prompts = ({pair["id"].rsplit("-", 1)[0] for pair in part} for part in (usual, pairs))
    assert len(prompts) > 0.8 * len(all_prompts)


@pytest.mark.usefixtures("no_models")
def test_more_pairs_than_there_are_is_refused(tmp_path: Path) -> None:
    for num_pairs in (0, 308):
        with pytest.raises(ConfigError, match=rf"--pairs is {num_pairs}; the demo has 307 pairs"):
            write_demo(tmp_path, num_pairs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_models")
def test_a_config_that_was_changed_stays(tmp_path: Path) -> None:
    path = write_demo(tmp_path, 3)
    path.write_text(path.read_text() + "# my own change\n")
    assert write_demo(tmp_path, 3) == path
    assert "# my own change" in path.read_text()


def test_pairs_do_not_go_with_self_play(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--self-play", "--pairs", "10"])
    assert ended.value.code == 2
    assert "--pairs is for the demo without --self-play" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_config_names_models_that_are_there(smollm2_dir: Path, tmp_path: Path) -> None:
    config = load_config(write_demo(tmp_path, 3, smollm2_dir.parent))
    for model in config.torch_models().values():
        assert (Path(model.model) / "model.safetensors").is_file()

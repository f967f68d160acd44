"""What `alignpot demo` lays out, without running it."""

import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.config import Source
from pipeline.config_file import load_config, parse_config
from pipeline.demo.run import DEMO, demo_config
from pipeline.demo.sample_pairs import PAIRS_FILE, read_pairs
from pipeline.sources.reader import open_source
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
        "import sys, pipeline.demo, pipeline.demo.run, pipeline.demo.sample_pairs, pipeline.demo.fit_reward;"
        "print({'torch', 'transformers', 'ray', 'vllm', 'datasets'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.smollm2
def test_write_demo_lays_out_what_its_config_names(smollm2_dir: Path, tmp_path: Path) -> None:
    models = smollm2_dir.parent
    path = DEMO.write(tmp_path, models)
    config = load_config(path)
    assert config.source is not None
    assert (Path(config.source.path) / "pairs.jsonl").read_bytes() == PAIRS_FILE.read_bytes()
    for model in config.torch_models().values():
        assert (Path(model.model) / "model.safetensors").is_file()
    path.write_text(path.read_text() + "# my own change\n")
    assert DEMO.write(tmp_path, models) == path
    assert "# my own change" in path.read_text()

"""The demo of self-play: what it lays out, and a small round of it with vLLM."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from pipeline.config import parse_self_play
from pipeline.demo.run import run_self_play_demo, write_self_play_demo

SMALL = [
    "prompts.limit=8",
    "evaluate.num_prompts=2",
    "evaluate.num_responses=1",
    "generate.num_responses=3",
    "generate.max_tokens=24",
    "pair.finished_only=false",
    "evolve=null",
    "train.max_steps=1",
    "rounds=1",
]


@pytest.mark.slow
@pytest.mark.smollm2
def test_layout_is_written_once_and_changed_settings_survive(tmp_path: Path, smollm2_dir: Path):
    models = smollm2_dir.parent
    path = write_self_play_demo(tmp_path / "demo", models)
    config = yaml.safe_load(path.read_text())
    parsed = parse_self_play(config)
    assert parsed.rounds == 2
    assert parsed.generate.num_responses == 4
    assert Path(parsed.prompts.path, "prompts.jsonl").is_file()
    path.write_text(yaml.safe_dump({**config, "rounds": 3}))
    assert write_self_play_demo(tmp_path / "demo", models) == path
    assert yaml.safe_load(path.read_text())["rounds"] == 3


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make .venv/.installed-test"
)
def test_a_small_round_generates_with_vllm_judges_selects_trains_and_measures(tmp_path: Path, smollm2_dir: Path):
    (tmp_path / "models").symlink_to(smollm2_dir.parent)
    shown = "\n".join(run_self_play_demo(tmp_path, SMALL))
    (path,) = (tmp_path / "run").glob("round-1/training-*/report.json")
    report = json.loads(path.read_text())
    assert report["expansions"]["base"]["tokens_generated"] > 0
    assert report["measuring"]["tokens_generated"] > 0
    assert sum(part["selected"] for part in report["expansions"].values()) == sum(report["strategies"].values()) > 0
    assert report["training"]["summary"]["steps"] == 1
    assert report["evaluation"]["num_prompts"] == 2
    assert "held-out reward" in shown
    assert (Path(report["training"]["policy"]) / "model.safetensors").is_file()

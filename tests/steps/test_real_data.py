"""The main job on real preference data, on S3, with SmolLM2 and an adapter really trained, up to steps of TRL.

Uses the data beside the checkout where it is there, else our own sample pairs. ALIGNPOT_REAL_ROWS and
ALIGNPOT_REAL_STEPS make it larger (1600 and 36 take the better part of an hour on two cores).
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.demo.models import build_reward_model
from tests.fixtures_data import shared_folder
from tests.fixtures_storage import S3Server
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.test_score import scores_of

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.s3, pytest.mark.smollm2]

ROWS = int(os.environ.get("ALIGNPOT_REAL_ROWS", "8"))
STEPS = int(os.environ.get("ALIGNPOT_REAL_STEPS", "1"))
ROOT = Path(__file__).parents[2]
SHARED = shared_folder()


def hh_file(tmp_path: Path, pairs: list[dict]) -> Path:
    """HH transcripts as .jsonl.gz: the real ones, or our pairs written the same way."""
    path = tmp_path / "hh_harmless.jsonl.gz"
    if SHARED is not None:
        lines = gzip.decompress((SHARED / "hh_harmless.jsonl.gz").read_bytes()).splitlines(keepends=True)
        path.write_bytes(gzip.compress(b"".join(lines[:ROWS])))
        return path
    speaker = {"user": "Human", "assistant": "Assistant"}
    texts = [
        {
            side: "".join(f"\n\n{speaker[t['role']]}: {t['content']}" for t in [*row["prompt"], *row[side]])
            for side in ("chosen", "rejected")
        }
        for row in pairs[:ROWS]
        if row["prompt"][0]["role"] == "user"
    ]
    path.write_bytes(gzip.compress(write_jsonl(tmp_path / "hh.jsonl", texts).read_bytes()))
    return path


def candidates_file(tmp_path: Path, pairs: list[dict]) -> Path:
    """Candidates with rewards as Parquet: the real ones, or two answers of ours a prompt."""
    path = tmp_path / "candidates.parquet"
    if SHARED is not None:
        pq.write_table(pq.read_table(SHARED / "alpaca_eval_onpolicy.parquet").slice(0, ROWS), path)
        return path
    rows = [
        {
            "prompt": row["prompt"][-1]["content"],
            "all_generated_responses": [row["chosen"][0]["content"], row["rejected"][0]["content"]],
            "all_rm_scores": [float(len(row["id"])) + i / 7, 0.5],
        }
        for i, row in enumerate(pairs[:ROWS])
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def put(s3: S3Server, url: str, path: Path) -> str:
    place = Place.open(url, s3.storage)
    place.fs.pipe_file(f"{place.root}/{path.name}", path.read_bytes())
    return url


def trained_adapter(model: Path, data: Path, output: Path) -> Path:
    command = [
        sys.executable, "jobs/train_dpo.py", f"--model={model}", f"--data={data}", f"--output={output}",
        f"--set=train.max_steps={STEPS}", "--set=train.batch_size=2", "--set=train.learning_rate=1e-3",
        "--set=tokens.max_length=384",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1])["steps"] == STEPS
    return output


def assert_all_rows_accounted_for(config: Config, num_rows: int) -> None:
    place = Place.open(config.scored, config.storage)
    manifest = Dataset.open(place).manifest
    assert manifest.num_rows == num_rows == manifest.num_kept + manifest.num_dropped
    assert manifest.num_kept >= 0.9 * num_rows


def assert_trl_trains_on(config: Config, model_dir: Path, tmp_path: Path) -> None:
    """Real steps of DPOTrainer with a fresh LoRA adapter on the subset as it lies on S3."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    place = Place.open(f"{config.output.path}/hf", config.storage)
    local = tmp_path / "downloaded"
    place.fs.get(place.root, str(local), recursive=True)
    train = load_from_disk(str(local))["train"]
    assert train.num_rows > 0
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32"),
        args=DPOConfig(
            output_dir=str(tmp_path / "trained"),
            max_steps=2,
            per_device_train_batch_size=1,
            max_length=384,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=train,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    assert trainer.train().global_step == 2


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_hh_transcripts_with_a_trained_adapter_and_dpo(
    tmp_path: Path, pairs: list[dict], s3: S3Server, smollm2_dir: Path
):
    source = hh_file(tmp_path, pairs)
    num_rows = len(gzip.decompress(source.read_bytes()).splitlines())
    given = os.environ.get("ALIGNPOT_REAL_ADAPTER")
    adapter = Path(given) if given else trained_adapter(smollm2_dir, source, tmp_path / "adapter")
    base = s3.url("hh")
    model = {"model": str(smollm2_dir), "dtype": "bfloat16"}
    config = make_config(
        tmp_path,
        put(s3, f"{base}/source", source),
        source={"id_column": None},
        storage=s3.storage.model_dump(mode="json"),
        policy={**model, "adapter": str(adapter)},
        reference=model,
        reward={**model, "backend": "classifier", "model": str(build_reward_model(smollm2_dir, tmp_path / "reward"))},
        tokens={"max_length": 1024},
        scored=f"{base}/scored",
        objective={"name": "dpo", "beta": 0.1},
        output={"path": f"{base}/subset"},
        run={"engine": "ray", "shard_rows": 64},
    )
    print(run_all(config))
    assert_all_rows_accounted_for(config, num_rows)
    scores = scores_of(config)
    for side in ("chosen", "rejected"):
        policy, reference = (scores[f"{role}_logp_{side}"].to_numpy() for role in ("policy", "reference"))
        assert np.all(policy < 0)
        assert np.all(reference < 0)
        assert np.median(np.abs(policy - reference)) > 1e-3, "the trained adapter moved nothing"
    assert_trl_trains_on(config, smollm2_dir, tmp_path)


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_candidates_with_reward_columns_and_simpo(tmp_path: Path, pairs: list[dict], s3: S3Server, smollm2_dir: Path):
    source = candidates_file(tmp_path, pairs)
    base = s3.url("candidates")
    config = make_config(
        tmp_path,
        put(s3, f"{base}/source", source),
        source={"id_column": None},
        storage=s3.storage.model_dump(mode="json"),
        policy={"model": str(smollm2_dir), "dtype": "bfloat16"},
        reward={"backend": "columns"},
        scored=f"{base}/scored",
        objective={"name": "simpo", "beta": 2.0},
        output={"path": f"{base}/subset"},
        run={"engine": "ray", "shard_rows": 32},
    )
    print(run_all(config))
    assert_all_rows_accounted_for(config, pq.read_metadata(source).num_rows)

"""What the flow around vLLM costs: tokens/s of shards on Ray beside the same engine called directly, in one call.

    python -m tests.benchmarks.bench_generate [--prompts 28] [--shards 1 2] [--repeats 3] [--tokens 64] [--tiny]

SmolLM2 answers the demo's prompts, K = 4, temperature 0.8. Both engines are loaded with the same arguments and stay so;
loading is not timed. A repeat takes prompts that neither engine has seen, runs the direct call and then the flow on
them, or the other way round, and no two at once. The flow is timed from where it may read to where its last shard is
committed: reading, templates, sampling, decoding, writing an Arrow file, and all of Ray.

    ratio     tokens/s of the flow / tokens/s of the direct call; the median over repeats, and all of them.
    CPU       the same in CPU seconds of the two processes that hold an engine: what a busy machine moves less.

Gate: the flow's responses and token counts equal those of the direct call. The last line is a JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray

from jobs.demo_data.sample_pairs import load_prompts
from pipeline.config import Generate, Run, SelfPlayConfig, Tokens, TorchModel
from pipeline.demo.models import ensure_smollm2
from pipeline.on_ray.engine import run_on_ray
from pipeline.on_ray.session import ray_session
from pipeline.selfplay.candidates import PromptRenderer, environment, generate_stage
from pipeline.selfplay.sampler import load_decoder, seed_of
from pipeline.selfplay.vllm_sampler import engine_arguments
from pipeline.steps.work import ShardWork
from tests.benchmarks.generate_direct import Direct, DirectEngine, direct_engine
from tests.benchmarks.scoring_data import machine
from tests.fixtures_models import tiny_model, tiny_tokenizer
from tests.selfplay.tables import prompt_table
from tests.steps.kept import Keep

K = 4
WARM_UP = 4


@dataclass(frozen=True)
class Rows:
    index: int
    first: int
    num_rows: int
    repeat: int
    file: str = "prompts"


@dataclass(frozen=True)
class Reader:
    """Gives the rows of a repeat only when its turn has come."""

    table: pa.Table
    folder: Path

    def read(self, shard: Rows) -> pa.Table:
        while not (self.folder / f"go-{shard.repeat}").exists():
            time.sleep(0.01)
        return self.table.slice(shard.first, shard.num_rows)


class Flow:
    """The flow on Ray, its engine loaded, that works off one repeat when it is told to."""

    def __init__(self, config: SelfPlayConfig, table: pa.Table, shards: Sequence[Rows], folder: Path) -> None:
        self._folder, self._keep = folder, Keep(folder)
        self._shards = shards
        stages = (generate_stage(config, config.policy),)
        self._works: Iterator[ShardWork] = run_on_ray(Reader(table, folder), shards, stages, self._keep, Run())

    def run(self, repeat: int) -> tuple[float, float, pa.Table]:
        """Seconds, CPU seconds of the actor, and the rows of a repeat."""
        cpu = actor_cpu_s()
        began = time.time()
        (self._folder / f"go-{repeat}").touch()
        indices = [shard.index for shard in self._shards if shard.repeat == repeat]
        works = [next(self._works) for _ in indices]
        cpu = actor_cpu_s() - cpu
        ended = max(timing.ended_s for work in works for timing in work.timings)
        return ended - began, cpu, pa.concat_tables([self._keep.table_of(index) for index in indices])

    def end(self) -> None:
        assert next(self._works, None) is None


def actor_cpu_s() -> float:
    found = [p for p in psutil.Process().children(recursive=True) if "GenerateActor" in " ".join(p.cmdline())]
    return sum(sum(p.cpu_times()[:2]) for p in found)


def plan(num_prompts: int, num_shards: int, repeats: int, total: int) -> list[Rows]:
    """A short warm-up as repeat 0, then repeats of `num_prompts` prompts each."""
    shards = [Rows(index=0, first=0, num_rows=WARM_UP, repeat=0)]
    for repeat in range(1, repeats + 1):
        begin = WARM_UP + (repeat - 1) * num_prompts
        if begin + num_prompts > total:
            raise SystemExit(f"{repeats} repeats of {num_prompts} prompts are more than the {total} that there are")
        bounds = [begin + num_prompts * i // num_shards for i in range(num_shards + 1)]
        shards += [
            Rows(index=len(shards) + i, first=bounds[i], num_rows=bounds[i + 1] - bounds[i], repeat=repeat)
            for i in range(num_shards)
        ]
    return shards


def measure(
    config: SelfPlayConfig, num_shards: int, options: argparse.Namespace, direct: DirectEngine
) -> dict[str, Any]:
    prompts = [prompt.messages for prompt in load_prompts()]
    table = prompt_table(prompts)
    shards = plan(options.prompts, num_shards, options.repeats, len(prompts))
    generate = config.generate
    renderer = PromptRenderer(load_decoder(config.policy).tokenizer, Tokens(), config.generate.max_prompt_tokens)
    sampling = {"n": K, "temperature": generate.temperature, "top_p": generate.top_p, "max_tokens": generate.max_tokens}
    ids = table.column("id").to_pylist()
    rows = []
    with tempfile.TemporaryDirectory(prefix="alignpot-generate-") as name, ray_session(Run(), [generate]):
        flow = Flow(config, table, shards, Path(name))
        for repeat in range(options.repeats + 1):
            places = [i for s in shards if s.repeat == repeat for i in range(s.first, s.first + s.num_rows)]
            tokens = [renderer.token_ids(prompts[i]).tolist() for i in places]
            seeds = [seed_of(generate.seed, "generate", ids[i]) for i in places]
            first = flow.run(repeat) if repeat % 2 == 0 else None
            called = direct.generate(tokens, seeds, sampling)
            wall, cpu, answered = first or flow.run(repeat)
            check_equal(answered, called)
            if repeat:
                rows.append(figures(called, wall, cpu))
                print(f"{num_shards} shards of {options.prompts // num_shards}: {json.dumps(rows[-1])}", flush=True)
        flow.end()
    return {
        "ratio": statistics.median(row["ratio"] for row in rows),
        "cpu_ratio": statistics.median(row["cpu_ratio"] for row in rows),
        "repeats": rows,
    }


def check_equal(answered: pa.Table, called: Direct) -> None:
    texts = [[text.rstrip("\ufffd") if text.strip() else "" for text in texts] for texts in called.texts]
    if answered.column("all_generated_responses").to_pylist() != texts:
        raise SystemExit("the flow's responses differ from those of the engine called directly")
    if answered.column("num_tokens_responses").to_pylist() != called.tokens:
        raise SystemExit("the flow's token counts differ from those of the engine called directly")


def figures(called: Direct, wall_s: float, cpu_s: float) -> dict[str, float]:
    count = sum(map(sum, called.tokens))
    found = {
        "tokens": count,
        "flow_tokens_per_s": count / wall_s,
        "direct_tokens_per_s": count / called.wall_s,
        "ratio": called.wall_s / wall_s,
        "cpu_ratio": called.cpu_s / cpu_s,
    }
    return {name: round(value, 3) for name, value in found.items()}


def policy_of(folder: Path, *, tiny: bool) -> TorchModel:
    if not tiny:
        return TorchModel(model=str(ensure_smollm2()))
    tiny_model("llama", hidden_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return TorchModel(model=str(folder), dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark generation on Ray.")
    parser.add_argument("--prompts", type=int, default=28, help="in a repeat")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, to try the script")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    print(json.dumps(found["machine"]))
    with tempfile.TemporaryDirectory(prefix="alignpot-policy-") as folder:
        generate = Generate(num_responses=K, max_tokens=options.tokens, max_prompt_tokens=512)
        config = SelfPlayConfig(
            path=folder,
            prompts={"path": folder},
            policy=policy_of(Path(folder), tiny=options.tiny),
            reward={"backend": "classifier", "model": "none"},
            generate=generate,
        )
        arguments = engine_arguments(config.policy, generate, load_decoder(config.policy).context)
        with direct_engine(arguments, environment(generate)) as direct:
            for num_shards in options.shards:
                found[f"{num_shards} shards"] = measure(config, num_shards, options, direct)
    ray.shutdown()
    print(json.dumps(found | {"machine_after": machine()}))


if __name__ == "__main__":
    main()

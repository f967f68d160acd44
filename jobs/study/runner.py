"""How a cell of the training study is run: pool, scores, selection, training, measurement."""

import hashlib
import importlib.metadata
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.study.cells import ALL_WORLDS, ARMS, BEFORE, MAIN_WORLD, OBJECTIVES, SAME_STEPS, Cell
from jobs.study.lab import Lab, seen_rewards
from pipeline import api
from pipeline import schema as s
from pipeline.config import Pairing, Train
from pipeline.errors import DataError
from pipeline.results import Scored, Subset
from pipeline.selfplay.pairing import make_pairs
from pipeline.training.job import TrainJob
from pipeline.training.run import run as train

GOLD_CHOSEN: Final = "gold_chosen"
GOLD_REJECTED: Final = "gold_rejected"
_VALUES: Final = (s.REWARD_CHOSEN, GOLD_CHOSEN, s.REWARD_REJECTED, GOLD_REJECTED)
_EPOCHS: Final[Mapping[str, float]] = {"warm": 1.0, "over": 6.0}


class Runner:
    """Runs cells on the models of a lab; what cells share lies below the lab's work folder."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._loaded: dict[Path, Any] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and measure; what is found as JSON: the cell, its outcome, and facts of what was selected."""
        begin = time.monotonic()
        start = self._start(cell)
        model = self._model(start)
        trained, facts = model, {"pairs": 0, "steps": 0}
        with tempfile.TemporaryDirectory(dir=self._lab.work) as name:
            policy = start
            for number in range(cell.num_rounds) if cell.arm != BEFORE else ():
                folder = Path(name) / str(number)
                scored = self._scored(cell, policy, number, folder if number else self._folder(cell))
                facts = self._train(cell, scored, policy, folder / "adapter")
                trained = self._lab.with_adapter(self._model(policy), folder / "adapter")
                policy = folder / "policy"
                if number + 1 < cell.num_rounds:
                    self._lab.save(trained, policy)
            outcome = self._lab.outcome(trained, model, self._lab.prompts_of(cell.seed)[1], cell.seed)
        return {
            **asdict(cell),
            **asdict(outcome),
            **facts,
            "seconds": round(time.monotonic() - begin, 1),
            "versions": {name: importlib.metadata.version(name) for name in ("alignpot", "torch", "trl")},
        }

    def _folder(self, cell: Cell) -> Path:
        return self._lab.work / f"seed-{cell.seed}" / cell.start

    def _model(self, policy: Path) -> Any:
        """A policy in memory; the latest one is kept."""
        if policy not in self._loaded:
            self._loaded.clear()
            self._loaded[policy] = self._lab.load(policy)
        return self._loaded[policy]

    def _start(self, cell: Cell) -> Path:
        """The start policy of a cell: the base model, or what DPO makes of it on prompts of their own."""
        if cell.start == "base":
            return self._lab.base
        output = self._folder(cell) / "policy"
        if not output.is_dir():
            first = replace(cell, start="base", objective="dpo", world=MAIN_WORLD)
            prompts = self._lab.prompts_of(cell.seed)[2]
            pairs = self._pairs(first, self._pool(self._folder(cell) / "warm", self._lab.base, prompts, cell.seed))
            with tempfile.TemporaryDirectory(dir=self._lab.work) as name:
                folder = Path(name)
                datasets.Dataset(pairs).save_to_disk(folder / "hf")
                self._run_training(first, folder / "hf", self._lab.base, folder / "adapter", epochs=_EPOCHS[cell.start])
                trained = self._lab.with_adapter(self._model(self._lab.base), folder / "adapter")
                self._lab.save(trained, output)
        return output

    def _pool(self, folder: Path, policy: Path, prompts: pa.Table, seed: int) -> pa.Table:
        """The answers of a policy to prompts, with their gold rewards; made once."""
        file = folder / "pool.parquet"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            made = self._lab.answers(self._model(policy), prompts, self._lab.size.num_responses, seed)
            pq.write_table(made, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        return pq.read_table(file)

    def _pairs(self, cell: Cell, pool: pa.Table) -> pa.Table:
        """Best against worst, second best against second worst, as the proxy of the cell's world sees them.

        Flipped labels exchange the answers of a pair with their rewards.
        """
        world = ALL_WORLDS[cell.world]
        made = make_pairs(seen_rewards(pool, world, cell.seed), Pairing(per_prompt=2))
        gold = {
            (row[s.ID], text): reward
            for row in pool.to_pylist()
            for text, reward in zip(row[s.RESPONSES] or (), row[s.RESPONSE_REWARDS] or (), strict=True)
        }
        rng = np.random.default_rng([cell.seed, 2])
        rows = []
        for row in made.to_pylist():
            if row[s.STATUS] == s.DROPPED:
                continue
            sides = [
                (row[side], row[reward], gold[row[s.PROMPT_ID], row[side][0]["content"]])
                for side, reward in ((s.CHOSEN, s.REWARD_CHOSEN), (s.REJECTED, s.REWARD_REJECTED))
            ]
            (chosen, *of_chosen), (rejected, *of_rejected) = reversed(sides) if rng.random() < world.flips else sides
            values = dict(zip(_VALUES, (*of_chosen, *of_rejected), strict=True))
            texts = {s.ID: row[s.ID], s.PROMPT: row[s.PROMPT], s.CHOSEN: chosen, s.REJECTED: rejected}
            rows.append(texts | values)
        return pa.Table.from_pylist(rows)

    def _scored(self, cell: Cell, policy: Path, number: int, folder: Path) -> Scored:
        """The pairs of a round, scored by its policy; of the first round they are kept for the other cells."""
        pool = self._pool(folder, policy, self._lab.prompts_of(cell.seed)[0], cell.seed + 10_000 * number)
        reference = self._lab.section(self._lab.base).model_dump(exclude_defaults=True)
        return api.score(
            self._pairs(cell, pool),
            policy=self._lab.section(policy).model_dump(exclude_defaults=True),
            reference=reference if cell.objective == "dpo" else None,
            reward="columns",
            objective=OBJECTIVES[cell.objective].model_dump(exclude_none=True),
            path=folder / f"scored-{cell.objective}-{cell.world.replace(' ', '-')}",
            tokens=self._lab.tokens.model_dump(mode="json"),
            source={"id_column": s.ID, "passthrough": [GOLD_CHOSEN, GOLD_REJECTED]},
        )

    def _train(self, cell: Cell, scored: Scored, policy: Path, output: Path) -> dict[str, Any]:
        """Train on what the arm of a cell selects; facts of the pairs."""
        subset, refused = _selected(cell, scored)
        subset.write(output.parent / "subset", formats=["hf"])
        size = self._lab.size
        same_steps = max(1, int(size.fraction * len(scored)) // size.batch_size)
        num_steps = same_steps if cell.arm == SAME_STEPS else None
        summary = self._run_training(cell, output.parent / "subset" / "hf", policy, output, max_steps=num_steps)
        rows = subset.to_arrow()
        margins = rows.column(GOLD_CHOSEN).to_numpy() - rows.column(GOLD_REJECTED).to_numpy()
        ids = ",".join(sorted(rows.column(s.ID).to_pylist()))
        return {
            "pairs": len(subset),
            "steps": summary["steps"],
            "gold_margin": round(float(margins.mean()), 4),
            "wrong_labels": round(float((margins < 0).mean()), 4),
            "refused": refused,
            "selected": hashlib.sha256(ids.encode()).hexdigest()[:12],
        }

    def _run_training(
        self, cell: Cell, data: Path, policy: Path, output: Path, epochs: float = 1.0, max_steps: int | None = None
    ) -> dict[str, Any]:
        """Train an adapter; the reference of DPO is the base model, and its log-probs are those that were scored."""
        size, is_base = self._lab.size, policy == self._lab.base
        settings = Train(
            method="simpo" if cell.objective == "simpo" else "dpo",
            adapter="lora",
            rank=size.rank,
            learning_rate=size.learning_rate,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=size.batch_size,
            dtype="float32",
            precomputed_reference=not is_base,
            seed=cell.seed,
            num_gpus=size.num_gpus,
        )
        job = TrainJob(
            datasets=(str(data),),
            policy=self._lab.section(policy),
            reference=None if is_base else self._lab.section(self._lab.base),
            output=output,
            settings=settings,
            objective=OBJECTIVES[cell.objective],
            tokens=self._lab.tokens,
            merge=False,
        )
        return train(job)


def _selected(cell: Cell, scored: Scored) -> tuple[Subset, bool]:
    """What the arm of a cell selects, and whether its metric refused the pool: then the default metric selects."""
    keys = {"objective": scored.config.objective.model_dump(), "fraction": cell.fraction, **ARMS[cell.arm]}
    sign = keys.pop("gold", None)
    if sign is None:
        try:
            return api.select(scored, **keys), False
        except DataError:
            return api.select(scored, objective=keys["objective"], fraction=cell.fraction), True
    table = scored.to_arrow()
    for reward, gold in ((s.REWARD_CHOSEN, GOLD_CHOSEN), (s.REWARD_REJECTED, GOLD_REJECTED)):
        values = pa.array(sign * table.column(gold).to_numpy())
        table = table.set_column(table.column_names.index(reward), reward, values)
    return api.select(table, **keys), False

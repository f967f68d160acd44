"""Train a LoRA adapter with TRL's DPOTrainer on a preference dataset, such as a subset that alignpot wrote.

    python jobs/train_dpo.py --model MODEL --data subset/hf --output adapter --steps 40

Reads a `save_to_disk` folder as it is, and anything else through alignpot's own readers. Writes the adapter as
safetensors and ends with one line of JSON: rows, steps, and the loss and reward accuracy of the first and last step.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AlignpotError, SchemaError, SourceError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "chosen", "rejected")


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a LoRA adapter with DPO on preference pairs.")
    parser.add_argument("--model", required=True, help="directory or hub id of the model to train")
    parser.add_argument("--data", required=True, help="save_to_disk folder, or any file, folder or URL of pairs")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter; must not hold one yet")
    parser.add_argument("--steps", type=int, default=40, help="at least 1")
    parser.add_argument("--rows", type=int, help="train on the first ROWS pairs only")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and response together")
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    if (options.output / "adapter_config.json").exists():
        parser.error(f"--output {options.output} holds an adapter already; name another folder")
    return options


def load_pairs(data: str, rows: int | None) -> "Dataset":
    """The first `rows` pairs (all, if None) with prompt, chosen and rejected as message lists.

    Raises:
        SourceError: no rows, or none that alignpot can read.
        SchemaError: a saved dataset lacks one of the columns.
    """
    from datasets import Dataset, DatasetDict, load_from_disk

    folder = Path(data)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        loaded = load_from_disk(data)
        pairs = loaded["train"] if isinstance(loaded, DatasetDict) else loaded
    else:
        pairs = Dataset.from_list(read_pairs(data))
    if not len(pairs):
        raise SourceError(f"--data {data} has 0 usable rows. Give preference pairs.")
    missing = [name for name in COLUMNS if name not in pairs.column_names]
    if missing:
        raise SchemaError(f"--data {data} lacks {', '.join(missing)}; it has {', '.join(pairs.column_names)}.")
    return pairs.select(range(min(rows or len(pairs), len(pairs)))).select_columns(list(COLUMNS))


def read_pairs(data: str) -> list[dict[str, Any]]:
    """Pairs of any format that alignpot reads; rows that its readers drop are left out."""
    from pipeline.config import Source, Storage
    from pipeline.data.place import Place
    from pipeline.schema import KEPT, STATUS
    from pipeline.sources.reader import open_source
    from pipeline.sources.shards import plan_shards

    place, source = Place.open(data, Storage()), Source(path=data)
    reader, files = open_source(place.fs, place.root, source, rewards=False, policy_logps=False, reference_logps=False)
    tables = (reader.read(shard).select([*COLUMNS, STATUS]) for shard in plan_shards(files, shard_rows=4096))
    rows = (row for table in tables for row in table.to_pylist())
    return [row for row in rows if row[STATUS] == KEPT]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train, save the adapter and return the summary."""
    import torch
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    pairs = load_pairs(options.data, options.rows)
    on_gpu = torch.cuda.is_available()
    settings = DPOConfig(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.lr,
        beta=options.beta,
        max_length=options.max_length,
        seed=options.seed,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        model_init_kwargs={"dtype": torch.bfloat16 if on_gpu else torch.float32},
    )
    adapter = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = DPOTrainer(model=options.model, args=settings, train_dataset=pairs, peft_config=adapter)
    trainer.train()
    trainer.model.save_pretrained(options.output)  # not save_model, which adds a pickle of the settings
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "adapter": str(options.output),
        "rows": len(pairs),
        "steps": len(steps),
        "loss": [steps[0]["loss"], steps[-1]["loss"]],
        "reward_accuracy": [steps[0]["rewards/accuracies"], steps[-1]["rewards/accuracies"]],
    }


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says; an error of ours is one line on stderr and its exit code."""
    options = parse_options(argv)
    try:
        print(json.dumps(train(options)))
    except AlignpotError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

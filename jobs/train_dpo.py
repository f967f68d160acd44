"""Train a LoRA adapter by DPO on a subset, or on any preference data, with the trainer of self-play.

    python jobs/train_dpo.py --model MODEL --data subset/hf --output adapter --set train.max_steps=40

`--set` takes keys of the config's sections train, objective, tokens and storage; their defaults are the usual ones.
`--set train.adapter=none` trains all weights. Ends with one line of JSON: what `training.json` in the output says.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Storage
from pipeline.errors import AlignpotError, ConfigError, SourceError
from pipeline.scratch import scratch_folder
from pipeline.training import run
from pipeline.training.job import TrainJob
from pipeline.training.workplace import finished_summary


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a LoRA adapter by DPO on preference pairs.")
    parser.add_argument("--model", required=True, help="directory or hub id of the model to train")
    parser.add_argument("--data", required=True, help="save_to_disk folder, or any file, folder or URL of pairs")
    parser.add_argument("--output", required=True, help="folder for the adapter; one that is there already is kept")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="may be repeated")
    return parser.parse_args(argv)


def job_of(options: argparse.Namespace, scratch: Path) -> TrainJob:
    """The training; pairs of another format than `save_to_disk` are converted below `scratch`.

    Raises:
        ConfigError: `--set` has a key or a value that does not fit.
        SourceError: there are no pairs.
    """
    # With the adapter switched off the model is its own reference, so the data need no reference log-probs.
    train: dict[str, Any] = {"method": "dpo", "adapter": "lora", "precomputed_reference": False}
    sections: dict[str, dict[str, Any]] = {"train": train, "objective": {"name": "dpo"}, "tokens": {}, "storage": {}}
    for change in options.set:
        name, _, value = change.partition("=")
        section, _, key = name.partition(".")
        if section not in sections or not key:
            raise ConfigError(f"--set {name}: wanted SECTION.KEY=VALUE with one of the sections {', '.join(sections)}.")
        sections[section][key] = yaml.safe_load(value)
    job = {
        "datasets": [options.data],
        "policy": {"model": options.model},
        "output": options.output,
        "merge": False,
        "settings": sections.pop("train"),
        **sections,
    }
    storage = TrainJob.from_json(json.dumps(job)).storage
    return TrainJob.from_json(json.dumps({**job, "datasets": [saved(options.data, storage, scratch)]}))


def saved(data: str, storage: Storage, scratch: Path) -> str:
    """The data as `save_to_disk` writes it: where it is, or below `scratch`, read by alignpot's own readers.

    Raises:
        SourceError: no row can be used.
    """
    if any((Path(data) / name).exists() for name in ("state.json", "dataset_dict.json")):
        return data
    from datasets import disable_progress_bars

    from pipeline.api import read_pairs

    pairs = read_pairs(data, storage=storage.model_dump())
    if not len(pairs):
        raise SourceError(f"--data {data} has 0 usable rows. Give preference pairs.")
    disable_progress_bars()
    pairs.to_datasets().save_to_disk(scratch / "pairs")
    return str(scratch / "pairs")


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; an error of ours is one line on stderr and its exit code."""
    options = parse_options(argv)
    with scratch_folder("train") as scratch:
        try:
            job = job_of(options, scratch)
        except AlignpotError as error:
            print(f"{type(error).__name__}: {' '.join(str(error).splitlines())}", file=sys.stderr)
            return error.exit_code
        file = scratch / "job.json"
        file.write_text(job.model_dump_json(), encoding="utf-8")
        code = run.main([str(file)])
    if not code:
        print(json.dumps(finished_summary(job.output)))
    return code


if __name__ == "__main__":
    sys.exit(main())

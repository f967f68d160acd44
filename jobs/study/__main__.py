"""Compare the ways to set the explicit/implicit ratio: `python -m jobs.study [--output study.json]`.

Simulates preference worlds, trains policies on what each way selects, and prints Markdown tables. With --scored PATH,
a scored dataset that `alignpot score` wrote, it prints instead what each way does to that dataset.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jobs.study import compare, scored, table, trials
from pipeline.config import Objective
from pipeline.errors import AlignpotError
from pipeline.metrics import OBJECTIVES


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare the ways to set the explicit/implicit ratio.")
    parser.add_argument("--seeds", type=int, help="seeds a world; at least 2")
    parser.add_argument("--first-seed", type=int, default=trials.StudySize().first_seed)
    parser.add_argument("--quick", action="store_true", help="few seeds, worlds, pairs and steps")
    parser.add_argument("--scored", action="append", default=[], metavar="PATH", help="scored dataset; repeatable")
    parser.add_argument("--objective", choices=OBJECTIVES, default="simpo", help="with --scored")
    parser.add_argument("--fraction", type=float, default=0.4, help="share to select, with --scored")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    options = parser.parse_args(argv)
    if options.seeds is not None and options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}")
    if not 0 < options.fraction <= 1:
        parser.error(f"--fraction must be above 0 and at most 1, got {options.fraction}")
    return options


def study(options: argparse.Namespace) -> tuple[str, Any]:
    """Markdown and JSON of the simulated worlds."""
    size = trials.QUICK if options.quick else trials.StudySize()
    size = replace(size, first_seed=options.first_seed, num_seeds=options.seeds or size.num_seeds)
    comparison = compare.compare(list(trials.run_trials(size)))
    return table.report(comparison, size), {"size": asdict(size), **asdict(comparison)}


def study_scored(options: argparse.Namespace) -> tuple[str, Any]:
    """Markdown and JSON of the scored datasets."""
    objective = Objective(name=options.objective)
    effects = [scored.effects_of(path, objective, options.fraction) for path in options.scored]
    return "\n\n".join(map(scored.report, effects)), list(map(asdict, effects))


def main(argv: list[str] | None = None) -> None:
    """Run the study; an error of ours is one line on stderr and its exit code."""
    options = parse_options(argv)
    start_s = time.monotonic()
    try:
        markdown, results = study_scored(options) if options.scored else study(options)
    except AlignpotError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(markdown)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{time.monotonic() - start_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

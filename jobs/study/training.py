"""Does selection by potential give better training data? Real trainings: `python -m jobs.study.training`.

The analysis plan. It was written before any run that counts. A pilot on seed 900 set the learning rate, so that
training moves the policy by about two nats, and showed what a cell costs: some 30 CPU seconds.

Question. Of one pool of on-policy pairs, each arm selects a quarter, and the same policy is trained on it. Which arm's
policy is best?

Pool of a seed. Prompts are drawn from those given. SmolLM2-135M-Instruct, the start policy, answers each of them K = 4
times. A gold reward (the demo's reward model, a real head on SmolLM2) judges the answers as they are cut. Selection
sees a proxy: the gold reward plus noise of half its standard deviation within prompts. Pairs are best against worst
and second best against second worst by the proxy. `pipeline.score` scores them, `pipeline.select` selects, and the
built-in trainer (TRL, LoRA) trains one epoch. All arms of one share so have equal steps and equal epochs.

Arms. Part main: potential with w = 1, explicit, random, and as a positive control the gold margin, which no user has.
Part arms: potential with w = 0.5, 2.5, auto, and with the length residual; implicit smallest and largest; BeeS;
difficulty; sigma-gap; a second random draw; all pairs, with as many steps as the others and with one epoch. Where a
metric refuses a pool, the default metric selects, and the report says how often. No arm is left out after looking. The
order is part main for all seeds of SimPO, then of DPO, then part arms likewise, so that a run that is stopped early
has answered the main question first. Only whole blocks (all arms of a seed in a part) count.

Objectives. SimPO from the base policy. DPO from a policy after one DPO epoch on other prompts, with the base policy as
reference, because all implicit margins of the base policy under DPO are 0.

Primary outcome. Win rate by gold reward on held-out prompts: one answer of the trained policy against one of the start
policy with the same random numbers; ties count one half. Secondary: mean gain of the gold reward, tokens of an answer,
KL to the start, perplexity and next-token accuracy on neutral text. Only the primary outcome decides.

Statistics. The unit is the seed: prompts, answers, noise and training are drawn anew. Arms are compared with `random,
draw 1`, paired by seed and prompt. Intervals of 95 % come from a bootstrap over seeds, and again from Student's t in
other code; both are printed if they differ by more than a tenth of their width. P-values of all comparisons of an
objective are corrected by Holm's rule.

What can be found. With 8 seeds and 32 held-out prompts, if a win is a coin and a seed adds 0.05, a true difference of
17 points of win rate is found with 80 % power without correction, one of 20 after correction over 3 comparisons, and
one of 26 over 14. Smaller ones stay open at scale cpu. With 20 seeds and 256 prompts (scale gpu) they are 6, 7 and 8
points. Pairing can only lower them. The report says what the data gave.

Control, by `--scale control --part control --objectives dpo`. Before arms that may differ little are compared, it must
be shown that the study finds a planted difference and no other. In a pool whose labels are a coin's, the gold margin
picks the best right pairs, and reversed, the worst wrong ones; two random draws stand beside them. Planted is gold
against reversed, null is draw 2 against draw 1. DPO from the base policy, which is its reference: no margin is read.
With 128 prompts, 89 pairs in 22 steps and 128 held-out prompts, by the same reckoning, a difference of 9 points is
found with 80 % power, one of 11 after correction over 3 comparisons. A pilot on seed 901 with half of the pool set this
size: gold won 0.50 against the start, reversed 0.29.

Further parts, by `--part`: start policies (base, after one DPO epoch, after six), shares of the pool, three rounds of
self-play, and other worlds (a clean proxy, much noise, flipped labels, length bias, rewards x 10).
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, get_args

from jobs.study import cells, findings
from jobs.study.cells import Size
from pipeline.errors import AlignpotError

SCALES: Final = {
    "tiny": Size(
        num_seeds=2,
        num_prompts=6,
        num_held_out=4,
        max_prompt_tokens=24,
        max_tokens=8,
        fraction=0.4,
        batch_size=2,
        num_kl=2,
    ),
    "cpu": Size(num_seeds=8, num_prompts=32, num_held_out=32),
    "control": Size(num_seeds=8, num_prompts=128, num_held_out=128, fraction=0.35, batch_size=4, learning_rate=1e-3),
    "gpu": Size(
        num_seeds=20,
        num_prompts=512,
        num_held_out=256,
        max_prompt_tokens=128,
        max_tokens=96,
        batch_size=16,
        learning_rate=3e-4,
        rank=16,
        num_kl=32,
        num_gpus=1,
    ),
}
TINY_ARMS: Final = ("gold margin", "gold margin, reversed")
_DEMO_PROMPTS: Final = Path(__file__).parents[2] / "pipeline" / "demo" / "prompts.jsonl"


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Does selection by potential give better training data?")
    parser.add_argument(
        "--scale", choices=SCALES, default="cpu", help="tiny: a test; cpu, control: hours; gpu: wants one GPU"
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; cells in it are not run again")
    parser.add_argument("--part", nargs="+", choices=get_args(cells.Part), default=["main", "arms"])
    parser.add_argument("--objectives", nargs="+", choices=cells.OBJECTIVES, default=[*cells.OBJECTIVES])
    parser.add_argument("--seeds", type=int, help="number of seeds; default: that of the scale")
    parser.add_argument("--first-seed", type=int, default=0, help="several processes may share out the seeds")
    parser.add_argument(
        "--prompts", type=Path, default=_DEMO_PROMPTS, help="prompts of any format; default: the demo's"
    )
    parser.add_argument("--work", type=Path, help="folder of pools and scores; default: in the cache of the user")
    parser.add_argument("--report", action="store_true", help="print the report of the results, and run nothing")
    return parser.parse_args(argv)


def setup_of(size: Size, prompts: Path) -> str:
    """A digest of what makes cells comparable: the size of a scale but its seeds, and the prompts."""
    settings = json.dumps(asdict(replace(size, num_seeds=0)))
    return hashlib.sha256(settings.encode() + prompts.read_bytes()).hexdigest()[:8]


def run(options: argparse.Namespace) -> None:
    """Run every cell that has no line in the results, and append its line."""
    from jobs.study.lab import Lab  # these load torch
    from jobs.study.runner import Runner

    size = SCALES[options.scale]
    setup = setup_of(size, options.prompts)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignpot" / "study"
    work = (options.work or cache) / f"{options.scale}-{setup}"
    work.mkdir(parents=True, exist_ok=True)
    runner = Runner(Lab(size, options.prompts, work))
    arms = TINY_ARMS if options.scale == "tiny" else cells.MAIN_ARMS
    done = {_key(line) for line in findings.read_lines(options.results)}
    seeds = range(options.first_seed, options.first_seed + (options.seeds or size.num_seeds))
    about = {"scale": options.scale, "setup": setup}
    for part, objective, seed in itertools.product(options.part, options.objectives, seeds):
        for cell in cells.cells_of(part, objective, seed, size.fraction, arms):
            if _key({**about, **asdict(cell)}) not in done:
                append(options.results, {**about, **runner.run(cell)})


def append(results: Path, line: dict[str, Any]) -> None:
    """Add a line by one write, so that processes may share the file; after a torn line, on a line of its own."""
    text = json.dumps(line) + "\n"
    with results.open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            text = "\n" + text
        os.write(file.fileno(), text.encode())


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("scale", "setup", *cells.Cell.__dataclass_fields__))


def main(argv: list[str] | None = None) -> None:
    """Run the cells, or print the report; an error of ours is one line on stderr and its exit code."""
    options = parse_options(argv)
    try:
        if options.report:
            print(findings.report(findings.read_lines(options.results), options.scale, options.part[0]))
        else:
            run(options)
    except AlignpotError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

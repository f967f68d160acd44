"""The cells of the training study: which there are, and in which order they are run.

A cell is an arm, a seed, an objective, a start policy, a world and a share of the pool. It needs nothing of another
cell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from jobs.study.worlds import WORLDS, WorldSettings
from pipeline.config import Objective

Part = Literal["control", "main", "arms", "starts", "sizes", "rounds", "worlds"]
Start = Literal["base", "warm", "over"]

BEFORE: Final = "before training"
SAME_STEPS: Final = "all pairs, same steps"

ARMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "potential, w = 1": {"metric": "potential", "weight": 1.0},
    "explicit": {"metric": "explicit"},
    "random, draw 1": {"metric": "random", "seed": 1},
    "gold margin": {"metric": "explicit", "gold": 1.0},
    "implicit, smallest": {"metric": "implicit"},
    "implicit, largest": {"metric": "implicit", "order": "largest"},
    "potential, w = 0.5": {"metric": "potential", "weight": 0.5},
    "potential, w = 2.5": {"metric": "potential", "weight": 2.5},
    "potential, w auto": {"metric": "potential", "weight": "auto"},
    "potential, length residual": {"metric": "potential", "weight": 1.0, "length": "residual"},
    "bees-mul": {"metric": "bees-mul"},
    "difficulty": {"metric": "difficulty"},
    "sigma-gap": {"metric": "sigma-gap"},
    "random, draw 2": {"metric": "random", "seed": 2},
    SAME_STEPS: {"metric": "random", "fraction": 1.0},
    "all pairs, one epoch": {"metric": "random", "fraction": 1.0},
    "gold margin, reversed": {"metric": "explicit", "gold": -1.0},
}
"""What each arm selects by: arguments of `pipeline.select`. `gold` ranks by the gold margin, which no user has."""

MAIN_ARMS: Final = tuple(ARMS)[:4]
FEW_ARMS: Final = MAIN_ARMS[:3]
CONTROL_ARMS: Final = ("gold margin", "gold margin, reversed", "random, draw 1", "random, draw 2")
"""A planted difference, of the first two, and a planted null, of the last two."""
OTHER_ARMS: Final = tuple(ARMS)[4:-1]
OBJECTIVES: Final[Mapping[str, Objective]] = {
    "simpo": Objective(name="simpo", beta=2.0),
    "dpo": Objective(name="dpo", beta=0.1),
}
MAIN_START: Final[Mapping[str, Start]] = {"simpo": "base", "dpo": "warm"}
"""Under DPO the base policy is the reference, so that all its implicit margins are 0."""
MAIN_WORLD: Final = "noisy proxy"
COIN_WORLD: Final = "labels by a coin"
"""Half of the pairs are the wrong way round, so that what is selected by the gold margin teaches good or bad."""
ALL_WORLDS: Final[Mapping[str, WorldSettings]] = {
    MAIN_WORLD: WorldSettings(reward_noise=0.5),
    COIN_WORLD: WorldSettings(flips=0.5),
    **{name: WORLDS[name] for name in ("clean", "noisy reward", "flipped labels", "length bias", "reward x 10")},
}
_FRACTIONS: Final = (0.1, 0.25, 0.5, 1.0)
_NUM_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much one seed costs. The numbers of a scale are fixed, so that its cells can be compared."""

    num_seeds: int
    num_prompts: int
    num_held_out: int
    num_responses: int = 4
    max_prompt_tokens: int = 24
    max_tokens: int = 16
    fraction: float = 0.25
    batch_size: int = 2
    learning_rate: float = 3e-3
    rank: int = 8
    num_kl: int = 4
    num_gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training and its measurement. num_rounds: above 1, as many rounds of self-play, each from new answers."""

    part: Part
    seed: int
    objective: str
    start: Start
    arm: str
    world: str = MAIN_WORLD
    fraction: float
    num_rounds: int = 1


def cells_of(part: Part, objective: str, seed: int, fraction: float, arms: tuple[str, ...] = MAIN_ARMS) -> list[Cell]:
    """The block of one seed and objective, in the order in which it is run; a whole block is a fair comparison.

    arms: those of part main. The others, in part arms, are compared with what is measured there.
    """
    start = "base" if part == "control" else MAIN_START[objective]
    starts: tuple[Start, ...] = ("base", "warm", "over") if objective == "simpo" else ("warm", "over")
    sizes = [*((arm, share) for share in _FRACTIONS[:-1] for arm in FEW_ARMS), (FEW_ARMS[-1], 1.0)]
    layouts: dict[Part, list[dict[str, Any]]] = {
        "control": [{"world": COIN_WORLD, "arm": arm} for arm in CONTROL_ARMS],
        "main": [{"arm": arm} for arm in arms],
        "arms": [{"arm": arm, "fraction": ARMS[arm].get("fraction", fraction)} for arm in OTHER_ARMS],
        "starts": [{"start": each, "arm": arm} for each in starts for arm in FEW_ARMS],
        "sizes": [{"arm": arm, "fraction": share} for arm, share in sizes],
        "rounds": [{"arm": arm, "num_rounds": _NUM_ROUNDS} for arm in FEW_ARMS],
        "worlds": [{"world": world, "arm": arm} for world in ALL_WORLDS if world != COIN_WORLD for arm in FEW_ARMS],
    }
    shared = {"part": part, "seed": seed, "objective": objective, "start": start, "fraction": fraction}
    cells = [Cell(**shared | layout) for layout in layouts[part]]
    if part == "arms":
        return cells
    before = [replace(cell, arm=BEFORE, fraction=0.0, num_rounds=1, world=MAIN_WORLD) for cell in cells]
    return [*dict.fromkeys(before), *cells]

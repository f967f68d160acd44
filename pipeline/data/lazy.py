"""Where the datasets of a lazy run lie.

    run.json, parts/, _SUCCESS.json     pairs with their rewards and token counts, of kind LAZY
    proxy/                              every pair as score.proxy scores it, if there is one
    rounds/0000/, 0001/, ...            the rows that policy and reference scored in each round: scored datasets
    sealed/0002/                        every row, with what the first two rounds gave: the scored dataset

Each is an ordinary dataset. Rounds that come later lead to a new sealed one; readers take the last.
"""

from typing import Final

from pipeline.data.manifest import MANIFEST_FILE
from pipeline.data.place import Place

PROXY: Final = "proxy"
"""Path of the pairs as the proxy scores them, below the run's."""


def round_name(index: int) -> str:
    """Path of a round, 0-based, below the run's."""
    return f"rounds/{index:04d}"


def sealed_name(num_rounds: int) -> str:
    """Path of the scored dataset that so many rounds give."""
    return f"sealed/{num_rounds:04d}"


def last_sealed(place: Place) -> Place:
    """Of the last scored dataset that is complete; of the next one if there is none."""
    num_rounds = 0
    while _is_complete(place / round_name(num_rounds)):
        num_rounds += 1
    every = [place / sealed_name(number) for number in range(num_rounds, -1, -1)]
    return next(filter(_is_complete, every), every[0])


def _is_complete(place: Place) -> bool:
    return (place / MANIFEST_FILE).size() is not None

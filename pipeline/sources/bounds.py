"""How much of a foreign file is held in memory at once, and how much of what it claims is believed."""

from typing import Final

CELL_BYTES: Final = 128 << 20
"""Most bytes of a text, a line of JSON, or a page that expands by far: some 30 million tokens, more than any model
reads, and so little that many of them fit into memory at once."""

BOMB_BYTES: Final = 2 * CELL_BYTES
_BOMB_RATIO: Final = 200  # text is packed to a fifth, seldom to a hundredth
_VALUES: Final = 1 << 27
_VALUES_A_BYTE: Final = 100


class BadFile(Exception):  # noqa: N818 - becomes a SourceError that names the file
    """A data file that cannot be read."""


def is_bomb(expanded: int, packed: int) -> bool:
    """Whether `packed` bytes become so many that the file was made to fill memory."""
    return expanded > max(BOMB_BYTES, _BOMB_RATIO * packed)


def check_expansion(expanded: int, packed: int) -> None:
    """Raise BadFile for a decompression bomb."""
    if is_bomb(expanded, packed):
        raise BadFile(f"is a decompression bomb ({packed:,} bytes become {expanded:,} or more)")


def check_count(values: int, size: int) -> None:
    """Raise BadFile for more rows or values than a file of `size` bytes can sensibly hold, or fewer than none."""
    if not 0 <= values <= max(_VALUES, _VALUES_A_BYTE * size):
        raise BadFile(f"claims {values:,} rows or values in {size:,} bytes")

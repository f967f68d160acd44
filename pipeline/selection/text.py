"""Columns of text for the terminal."""

from collections.abc import Sequence

from pipeline.shown import shown


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Lines of cells, as `shown`, under each other: the first cell to the left, the others to the right."""
    lines = [tuple(map(shown, line)) for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )

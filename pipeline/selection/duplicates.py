"""Finds rows that bear one id: the same content twice is kept once, another content is refused.

Which row is kept does not depend on the order: where the scores of equal rows differ, as columns of a source may, the
smallest scores stay. Hashes of the ids say which rows may be repeats; these few are read again and compared.
"""

from typing import Final

import numpy as np

from pipeline import schema
from pipeline.errors import SourceError
from pipeline.metrics.ids import HashArray
from pipeline.selection.source import Positions, Source, take_all
from pipeline.shown import listed, quoted

_SCORES: Final = tuple(field.name for field in schema.SCORE_FIELDS if field.name != schema.TRUNCATED)


def find_repeats(source: Source, hashes: HashArray) -> Positions:
    """Positions of the rows to leave out because another one has their id and content, ascending.

    hashes: `id_hashes` of the source's rows, uint64 [num_rows].

    Raises:
        SourceError: rows share an id but not their content; names up to ten such ids.
    """
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not repeated.size:
        return np.zeros(0, dtype=np.int64)
    positions = np.flatnonzero(np.isin(hashes, repeated))
    names = [schema.ID, schema.CONTENT_DIGEST, *_SCORES]
    names = [name for name in names if name in source.schema.names]
    rows = take_all(source, positions, names).to_pylist()
    by_id: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_id.setdefault(row[schema.ID], []).append(place)
    left_out, conflicts = [], []
    for id_, places in by_id.items():
        if len({rows[place].get(schema.CONTENT_DIGEST) for place in places}) > 1:
            conflicts.append(id_)
        kept = min(places, key=lambda place: (_order(rows[place]), place))
        left_out += [place for place in places if place != kept]
    if conflicts:
        raise SourceError(
            f"{len(conflicts)} ids stand for rows of different content, first [{listed(conflicts, show=quoted)}]. Give "
            "each row an id of its own, or leave out source.id_column to have the content name the row; then score "
            "under another path."
        )
    return np.sort(positions[np.array(left_out, dtype=np.int64)])


def _order(row: dict[str, object]) -> list[str]:
    return [repr(row.get(name)) for name in _SCORES]

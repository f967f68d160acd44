"""The order in which the chosen rows are written: select.order."""

from typing import Final

import numpy as np

from pipeline.config import Order
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.ids import HashArray
from pipeline.selection.source import Positions

BY_LENGTH: Final = frozenset({"length_ascending", "length_descending"})


def written_order(order: Order, scores: FloatArray, lengths: FloatArray | None, hashes: HashArray) -> Positions | None:
    """Places of the chosen rows in the order of writing; None as they were read.

    Of equal rows, the one of the smaller hash of its id comes first; rows without a length come last. lengths: where
    the order is by length.
    """
    if order == "as_read":
        return None
    keys = scores if lengths is None else lengths
    order_of: Positions = np.lexsort([hashes, -keys if order.endswith("descending") else keys])
    return order_of

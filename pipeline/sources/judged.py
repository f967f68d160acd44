"""distilabel: `generations` with a judge's `ratings`, and mostly `chosen` and `rejected` made of them.

Rows with `chosen_rating` and `rejected_rating` but no generations are read by the format of their pair, and the
ratings by `scores`, as for every format.
"""

from pipeline.sources.ranked import candidates_format

JUDGED = candidates_format("judged", "generations", "ratings")

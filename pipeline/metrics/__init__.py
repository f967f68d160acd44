"""Formulas over scored columns: objectives, margins, exact moments and the metrics pairs are ranked by.

    columns      Arrow columns as float64 arrays
    objectives   implicit reward or margin of each training objective
    margins      explicit and implicit margin, chosen minus rejected
    moments      exact, mergeable mean and standard deviation
    length       what the length gap explains of the explicit margin
    ids          seeded hash of row ids
    potential    M_AP and the other metrics: the formulas
    bound        how high a score can be while the implicit margin is not known
    combine      one explicit margin of several rewards
    normalise    z-scores, robust z-scores, ranks; what a metric takes from the whole set
    weighting    how much each kept row counts in training
    calibration  margins on the log-odds scale of the labels
    ratio        the explicit/implicit ratio set automatically
    ranker       a metric ready to score rows

Plain numpy over Arrow; knows no storage, no models and no Ray.
"""

from pipeline.metrics.margins import explicit_margin, implicit_margin, implicit_reward, objective_columns
from pipeline.metrics.moments import Moments, moments_of
from pipeline.metrics.objectives import OBJECTIVES
from pipeline.metrics.potential import METRICS
from pipeline.metrics.ranker import Ranker

__all__ = [
    "METRICS",
    "OBJECTIVES",
    "Moments",
    "Ranker",
    "explicit_margin",
    "implicit_margin",
    "implicit_reward",
    "moments_of",
    "objective_columns",
]

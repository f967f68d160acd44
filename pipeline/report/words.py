"""What the names in a report mean, for people who look at the page."""

from typing import Final

from pipeline.drops import Reason

QUADRANTS: Final = {
    "agree": ("agree", "reward and policy both prefer the chosen response"),
    "reward_only": ("reward only", "the reward prefers chosen, the policy rejected"),
    "policy_only": ("policy only", "the policy prefers chosen, the reward rejected"),
    "both_against": ("both against the label", "reward and policy both prefer the rejected response"),
    "undecided": ("undecided", "one of the margins is exactly zero"),
}
MARGINS: Final = {
    "margin_explicit": "reward margin",
    "margin_explicit_residual": "reward margin without length",
    "margin_implicit": "implicit margin",
    "potential": "score",
}
REACH: Final = {
    "reversed": "reversed: the policy prefers rejected",
    "below_target": "below target: the policy prefers chosen, by less than the target",
    "done": "done: the policy prefers chosen, by the target or more",
}
LEFT_OUT: Final = {
    "duplicate": "repeats the id and content of another row",
    "outside_where": "select.where does not hold",
    "judges_disagree": "other rows prefer the other answer (select.disagreement)",
    "contradicted_by_reward": "the reward prefers rejected (select.labels: drop)",
    "too_few_rewards_agree": "too few rewards prefer chosen (select.agreement)",
    "beyond_per_prompt": "a prompt has better pairs enough (select.per_prompt)",
    "outside_score_band": "outside select.min_score and max_score",
    "outside_band": "outside select.band",
    "outside_length_bounds": "beyond select.max_length_ratio or max_length_gap",
    "length_not_known": "no token counts of both responses",
    "group_null": "no value in the column select.group_by",
    "group_without_quota": "its group has no quota",
    "text_of_a_better_row": "repeats the text of a better pair (select.deduplicate)",
}
"""Reasons of `excluded`; those that end with `_not_finite` lack a number that the metric reads."""


def left_out(reason: str) -> str:
    """A reason in words."""
    if reason.endswith("_not_finite"):
        return f"no finite {reason.removesuffix('_not_finite')}"
    return LEFT_OUT.get(reason, reason)


def dropped(drop: str) -> str:
    """A "stage: reason" of a scored dataset in words."""
    stage, _, reason = drop.partition(": ")
    meaning = Reason(reason).meaning.partition(";")[0] if reason in {*Reason} else ""
    return f"dropped in {stage}: {meaning or reason}"

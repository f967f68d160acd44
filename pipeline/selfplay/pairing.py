"""From the K responses to a prompt and their rewards to pairs of them.

Responses that can take part have text, a finite reward, `min_tokens` tokens, and, if asked for, ended by themselves.
Equal answers count once, with the better of their rewards. The others are sorted, best first, ties by text, so that the
pairs do not depend on the order in which the responses were sampled. Then the rule picks:

    best-worst   the best against the worst, the second best against the second worst, and so on inwards
    sweet-spot   the best against the one nearest to two deviations below the mean; again among those that are left
    random       two of different rewards by a seeded hash of the prompt's id; again among those that are left

No response is in two pairs, and responses of equal reward never make one. A picked pair beyond the bounds of margin or
length is left out, and no other takes its place. A prompt that gives no pair is one dropped row, under the prompt's id,
with stage `pair` and the reason.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Pairing
from pipeline.drops import Drop, DropRow, Reason
from pipeline.selfplay.sampler import seed_of
from pipeline.sources.ranked import sweet_spot
from pipeline.sources.rows import content_digest
from pipeline.sources.turns import completion_of

Row = dict[str, Any]
Picks = Iterator[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A response that can take part in a pair."""

    text: str
    reward: float
    num_tokens: int
    rewards: tuple[float, ...] = ()
    """What a pair holds of it: each of several rewards, or the only one."""


def make_pairs(annotated: pa.Table, rule: Pairing, rewards: Sequence[str] = ("",)) -> pa.Table:
    """The pairs of each prompt of a table of annotated candidates, in the order of the prompts.

    rewards: names of the rewards that a pair holds. The only one has no name; beside several, the candidates have one
    of their own to be picked by.

    The id of a pair is the digest of its content, so that it is unique over all rounds; `rewards_all` holds the
    rewards of all responses that could take part, best first. Prompts dropped before stay dropped as they are.
    """
    rows: list[Row] = []
    for row in annotated.to_pylist():
        prompt = {s.PROMPT: row[s.PROMPT], s.PROMPT_ID: row[s.ID]}
        prompt |= {field.name: row[field.name] for field in s.PROVENANCE_FIELDS}
        if row[s.STATUS] == s.DROPPED:
            rows.append(prompt | {s.ID: row[s.ID], **{field.name: row[field.name] for field in s.STATUS_FIELDS}})
            continue
        try:
            rows += [prompt | pair for pair in _pairs_of(row, rule, rewards)]
        except DropRow as drop:
            rows.append(prompt | {s.ID: row[s.ID], **Drop(drop.reason, "pair").columns})
    return pa.Table.from_pylist(rows, schema=s.generated_pair_schema(rewards))


def _pairs_of(row: Row, rule: Pairing, names: Sequence[str]) -> list[Row]:
    candidates, excluded = _usable(row, rule, names)
    if len(candidates) < 2:
        # The most frequent reason of exclusion; of several, the last alphabetically.
        most_telling = max(excluded, key=lambda reason: (excluded[reason], reason), default=Reason.TOO_FEW_CANDIDATES)
        raise DropRow(most_telling)
    rewards = [candidate.reward for candidate in candidates]
    picks: Picks
    if rule.rule == "best-worst":
        picks = _outside_in(rewards)
    else:
        picks = _sweet_spots(rewards) if rule.rule == "sweet-spot" else _drawn(rewards, rule.seed, row[s.ID])
    pairs: list[Row] = []
    refused = Reason.TIED_REWARDS
    for number, (i, j) in enumerate(itertools.islice(picks, rule.per_prompt)):
        better, worse = candidates[i], candidates[j]
        reason = _out_of_bounds(better, worse, rule)
        if reason is not None:
            refused = reason if number == 0 else refused
            continue
        chosen, rejected = completion_of(better.text), completion_of(worse.text)
        digest = content_digest(row[s.PROMPT], chosen, rejected)
        pair: Row = {s.ID: digest, s.CONTENT_DIGEST: digest, s.CHOSEN: chosen, s.REJECTED: rejected, s.STATUS: s.KEPT}
        for name, of_better, of_worse in zip(names, better.rewards, worse.rewards, strict=True):
            pair |= dict(zip(s.reward_columns(name), (of_better, of_worse), strict=True))
        pair[s.REWARDS_ALL] = rewards
        pairs.append(pair)
    if not pairs:
        raise DropRow(refused)
    return pairs


def _usable(row: Row, rule: Pairing, names: Sequence[str]) -> tuple[list[Candidate], Counter[Reason]]:
    """The candidates, best first, and how many responses were left out for which reason."""
    read = (s.RESPONSES, s.RESPONSE_REWARDS, s.RESPONSE_TOKENS, s.FINISH_REASONS, *map(s.response_rewards, names))
    columns = [row[name] or [] for name in read]
    if len({len(column) for column in columns}) > 1:
        raise DropRow(Reason.CANDIDATE_COUNT_MISMATCH)
    excluded: Counter[Reason] = Counter()
    found: list[Candidate] = []
    for text, reward, num_tokens, finish, *each in zip(*columns, strict=True):
        reason = _why_left_out(text, reward, num_tokens, finish, rule)
        if reason is None:
            found.append(Candidate(text=text, reward=reward, num_tokens=num_tokens, rewards=tuple(each)))
        else:
            excluded[reason] += 1
    found.sort(key=lambda candidate: (-candidate.reward, candidate.text, candidate.num_tokens))
    distinct: dict[str, Candidate] = {}
    for candidate in found:
        distinct.setdefault(candidate.text, candidate)
    if len(found) > len(distinct):
        excluded[Reason.IDENTICAL_RESPONSES] = len(found) - len(distinct)
    return list(distinct.values()), excluded


def _why_left_out(text: str | None, reward: float | None, num_tokens: int, finish: str, rule: Pairing) -> Reason | None:
    if text is None or not text.strip():
        return Reason.EMPTY_RESPONSE
    if reward is None:
        return Reason.NULL_SCORE
    if not math.isfinite(reward):
        return Reason.NON_FINITE_SCORE
    if rule.finished_only and finish != "stop":
        return Reason.UNFINISHED_RESPONSE
    return Reason.LENGTH_OUT_OF_BOUNDS if num_tokens < rule.min_tokens else None


def _outside_in(rewards: Sequence[float]) -> Picks:
    for better in range(len(rewards) // 2):
        worse = len(rewards) - 1 - better
        if rewards[better] == rewards[worse]:
            return
        yield better, worse


def _sweet_spots(rewards: Sequence[float]) -> Picks:
    left = list(range(len(rewards)))
    while len(left) > 1:
        try:
            worse = left[sweet_spot([rewards[i] for i in left])]
        except DropRow:
            return
        yield left[0], worse
        left = [i for i in left[1:] if i != worse]


def _drawn(rewards: Sequence[float], seed: int, prompt_id: str) -> Picks:
    """Every pair of different rewards is as likely as any other; the hash of a pair reads no text."""
    pairs = [pair for pair in itertools.combinations(range(len(rewards)), 2) if rewards[pair[0]] != rewards[pair[1]]]
    taken: set[int] = set()
    for pair in sorted(pairs, key=lambda pair: seed_of(seed, prompt_id, str(pair[0]), str(pair[1]))):
        if taken.isdisjoint(pair):
            taken.update(pair)
            yield pair


def _out_of_bounds(better: Candidate, worse: Candidate, rule: Pairing) -> Reason | None:
    margin = better.reward - worse.reward
    most = math.inf if rule.max_margin is None else rule.max_margin
    if not (rule.min_margin <= margin <= most and math.isfinite(margin)):
        return Reason.MARGIN_OUT_OF_BOUNDS
    shorter, longer = sorted((better.num_tokens, worse.num_tokens))
    if rule.max_length_ratio is not None and longer > rule.max_length_ratio * shorter:
        return Reason.LENGTH_OUT_OF_BOUNDS
    return None

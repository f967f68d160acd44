"""Pairs of a whole table at once, by Arrow and numpy kernels, for rows that hold plain turns and texts.

Only rows that are sure to be kept are taken; `Format.convert` decides about all others. Both give the same pair for the
same row. `good` marks the rows that are still taken, and each step below unmarks those it is not sure of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline import schema as s
from pipeline.sources.columns import one_array, plain_type
from pipeline.sources.rows import BEGUN, BESIDE_PAIR, HISTORY, PROMPT_TEXTS, SYSTEM_TEXTS, Layout
from pipeline.sources.turns import BEYOND_TEXT, ROLES

Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

_ROLES: Final = pa.array(sorted(ROLES), pa.string())
_ASSISTANT, _SYSTEM, _TOOL, _USER = (sorted(ROLES).index(role) for role in ("assistant", "system", "tool", "user"))
_VISIBLE: Final = pa.array([bytes([code]) for code in range(0x21, 0x7F)], pa.binary())
_PLAIN: Final = (
    *(pat.is_string, pat.is_large_string, pat.is_null, pat.is_boolean),
    *(pat.is_integer, pat.is_float32, pat.is_float64),
)
_MOST_BYTES: Final = 128 << 20  # of a table; escaped sixfold, its texts still fit into one Arrow array


class NotPlain(Exception):  # noqa: N818 - the rows are read one by one then
    """A table whose pairs cannot be made of whole columns."""


@dataclass(frozen=True, slots=True)
class ColumnTurns:
    """Turns of many rows in a flat list with `role` and `text`; those of a row are from its `start` to its `stop`.

    A role is a place in _ROLES, or -1 for an odd turn.
    """

    role: _Ints
    text: pa.Array
    start: _Ints
    stop: _Ints

    @property
    def length(self) -> _Ints:
        """Number of turns of each row."""
        return self.stop - self.start

    def cut(self, num_turns: _Ints) -> "tuple[ColumnTurns, ColumnTurns]":
        """The first `num_turns` turns of each row, and the others."""
        middle = self.start + num_turns
        return replace(self, stop=middle), replace(self, start=middle)

    def to_messages(self, rows: _Ints) -> pa.Array:
        """These rows' turns as Arrow messages."""
        places, offsets = _places(self.start[rows], self.length[rows])
        items = [_ROLES.take(pa.array(self.role[places])), self.text.take(pa.array(places))]
        turns = pa.StructArray.from_arrays(items, fields=list(s.MESSAGE))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), turns, type=s.MESSAGES)


def plain_arrays(table: pa.Table) -> dict[str, pa.Array]:
    """Each column in one piece.

    Raises:
        NotPlain: the columns are too large, or one is of a type that must be read row by row.
    """
    if table.nbytes > _MOST_BYTES or not all(_is_plain(field.type) for field in table.schema):
        raise NotPlain
    columns = {name: one_array(table.column(name)) for name in table.column_names}
    return {name: array.cast(plain_type(array.type)) for name, array in columns.items()}


def column_pairs(columns: Mapping[str, pa.Array], layout: Layout, good: Bools) -> dict[str, ColumnTurns]:
    """Prompt, chosen and rejected of the rows that are `good`.

    Raises:
        NotPlain: no row of such columns can be taken.
    """
    _check_null(columns, (s.TOOLS, BEGUN, HISTORY, *BESIDE_PAIR), good)
    if s.STATUS in columns and pat.is_string(columns[s.STATUS].type):
        good &= ~is_true(pc.equal(columns[s.STATUS], s.DROPPED))
    chosen, rejected = (_turns_of(columns[side], good) for side in (s.CHOSEN, s.REJECTED))
    has_turns = s.PROMPT in columns and pat.is_nested(columns[s.PROMPT].type)
    if layout == "turns" and has_turns:
        _check_null(columns, SYSTEM_TEXTS, good)
        prompt = _turns_of(columns[s.PROMPT], good)
        chosen, rejected = _without(prompt, chosen), _without(prompt, rejected)
    elif layout != "dialogues" and has_turns:
        raise NotPlain
    else:
        answers_only = _starts_with_answer(chosen) | _starts_with_answer(rejected)
        if layout == "dialogues" or 2 * np.sum(answers_only & good) <= np.sum(good):
            good &= ~answers_only
            _check_null(columns, SYSTEM_TEXTS, good)
            prompt, chosen, rejected = _split(chosen, rejected)
        else:
            good &= answers_only
            prompt = _prompt_of_texts(columns, good)
    _check_last(prompt, _USER, good)
    for completion in (chosen, rejected):
        others = ~np.isin(completion.role, (_ASSISTANT, _TOOL, _USER))
        good &= (_num_in(completion, others) == 0) & _starts_with_answer(completion)
        _check_last(completion, _ASSISTANT, good)
    good &= (chosen.length != rejected.length) | (_num_common(chosen, rejected) != chosen.length)
    return {s.PROMPT: prompt, s.CHOSEN: chosen, s.REJECTED: rejected}


def candidate_rewards(
    texts: pa.Array, scores: pa.Array, sides: Mapping[str, ColumnTurns], good: Bools
) -> dict[str, pa.Array]:
    """Rewards that chosen and rejected have as candidates, and those of all candidates.

    A row is not `good` if a side equals no candidate to the letter, or several of different scores.
    """
    every = scores.cast(pa.list_(pa.float64()))
    texts_from, scores_from = texts.offsets.to_numpy(), every.offsets.to_numpy()
    good &= ~_is_null(texts) & ~_is_null(every) & (np.diff(texts_from) == np.diff(scores_from))
    length = np.where(good, np.diff(texts_from), 0)
    row = np.repeat(np.arange(len(good)), length)
    candidates, rewards = _places(texts_from[:-1], length)[0], _places(scores_from[:-1], length)[0]
    values = every.values.to_numpy(zero_copy_only=False)[rewards]
    good[row[~np.isfinite(values) | _is_null(texts.values)[candidates]]] = False
    found = {s.REWARDS_ALL: every}
    for name, side in ((s.REWARD_CHOSEN, s.CHOSEN), (s.REWARD_REJECTED, s.REJECTED)):
        turns = sides[side]
        hits = np.flatnonzero(good[row])
        hits = hits[_alike(texts.values, candidates[hits], turns.text, turns.stop[row[hits]] - 1)]
        reward = np.full(len(good), np.nan)
        reward[row[hits[::-1]]] = values[hits[::-1]]  # the first one stays
        good &= ~np.isnan(reward)
        good[row[hits[values[hits] != reward[row[hits]]]]] = False
        found[name] = pa.array(reward)
    return found


def _is_plain(data_type: pa.DataType) -> bool:
    """Whether each Arrow value of this type has one Python value that holds no more."""
    if pat.is_struct(data_type):
        names = [field.name for field in data_type]
        return len({*names}) == len(names) and all(_is_plain(field.type) for field in data_type)
    if pat.is_list(data_type) or pat.is_large_list(data_type):
        return _is_plain(data_type.value_type)
    return any(is_plain(data_type) for is_plain in _PLAIN)


def _turns_of(column: pa.Array, good: Bools) -> ColumnTurns:
    """The turns of a column of messages, or of texts, which are answers."""
    good &= ~_is_null(column)
    places = np.arange(len(column) + 1)
    if pat.is_string(column.type):
        return ColumnTurns(np.full(len(column), _ASSISTANT), column, places[:-1], places[1:])
    if not pat.is_list(column.type) or not pat.is_struct(column.type.value_type):
        raise NotPlain
    offsets = column.offsets.to_numpy().astype(np.int64)
    items = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    offsets -= offsets[0]
    fields = dict(zip((field.name for field in items.type), items.flatten(), strict=True))
    if not all(name in fields and pat.is_string(fields[name].type) for name in ("role", "content")):
        raise NotPlain
    role = pc.fill_null(pc.index_in(fields["role"], value_set=_ROLES), -1).to_numpy().astype(np.int64)
    role[_is_null(fields["content"])] = -1
    for name in (*BEYOND_TEXT, *s.MESSAGE_FIELDS):
        if name in fields:
            role[~_is_null(fields[name])] = -1
    turns = ColumnTurns(role, fields["content"], offsets[:-1], offsets[1:])
    good &= _num_in(turns, role < 0) == 0
    return turns


def _prompt_of_texts(columns: Mapping[str, pa.Array], good: Bools) -> ColumnTurns:
    """As `turns.prompt_from_texts`."""
    texts, systems = (
        [columns[name] for name in names if name in columns and not pat.is_null(columns[name].type)]
        for names in (PROMPT_TEXTS, SYSTEM_TEXTS)
    )
    if not texts or not all(pat.is_string(column.type) for column in (*texts, *systems)):
        raise NotPlain
    text = pc.coalesce(*texts)
    good &= ~_is_null(text)
    if {"instruction", "input"} <= columns.keys():
        second = pc.binary_length(columns["input"]) if pat.is_string(columns["input"].type) else pa.nulls(len(text))
        has_both = ~_is_null(columns["instruction"]) & (pc.fill_null(second, 0).to_numpy() > 0)
        if "prompt" in columns:
            has_both &= _is_null(columns["prompt"])
        if has_both.any():
            both = pc.binary_join_element_wise(text, columns["input"], "\n")
            text = pc.if_else(pa.array(has_both), both, text)
    places = np.arange(len(text))
    if not systems:
        return ColumnTurns(np.full(len(text), _USER), text, places, places + 1)
    system = pc.fill_null(pc.coalesce(*systems), "")
    has_system = np.zeros_like(good)
    has_system[good] = _is_written(system, places[good])
    order = pa.array(np.stack([places, places + len(text)], axis=1).ravel())
    turns = pa.concat_arrays([system, text]).take(order)
    return ColumnTurns(np.tile([_SYSTEM, _USER], len(text)), turns, 2 * places + ~has_system, 2 * places + 2)


def _split(chosen: ColumnTurns, rejected: ColumnTurns) -> tuple[ColumnTurns, ColumnTurns, ColumnTurns]:
    """As `turns.split_dialogues`."""
    common = _num_common(chosen, rejected)
    rows = np.flatnonzero(common)
    while rows.size:
        rows = rows[chosen.role[chosen.start[rows] + common[rows] - 1] == _ASSISTANT]
        common[rows] -= 1
        rows = rows[common[rows] > 0]
    prompt, chosen = chosen.cut(common)
    return prompt, chosen, rejected.cut(common)[1]


def _without(prompt: ColumnTurns, dialogue: ColumnTurns) -> ColumnTurns:
    """As `turns.any_pair`, of a completion that may repeat the prompt."""
    is_repeated = _num_common(prompt, dialogue) == prompt.length
    return dialogue.cut(np.where(is_repeated, prompt.length, 0))[1]


def _num_common(one: ColumnTurns, other: ColumnTurns) -> _Ints:
    """How many turns two dialogues have in common at their beginning, row by row."""
    shorter = np.minimum(one.length, other.length)
    (ours, offsets), (theirs, _) = _places(one.start, shorter), _places(other.start, shorter)
    alike = (one.role[ours] == other.role[theirs]) & _alike(one.text, ours, other.text, theirs)
    unlike = np.append(np.flatnonzero(~alike), len(alike))
    first_unlike = unlike[np.searchsorted(unlike, offsets[:-1])]
    num_alike: _Ints = np.minimum(first_unlike - offsets[:-1], shorter)
    return num_alike


def _alike(ours: pa.Array, our_places: _Ints, theirs: pa.Array, their_places: _Ints) -> Bools:
    """Whether texts at these places equal each other; null equals nothing."""
    our_sizes, their_sizes = (pc.binary_length(texts).to_numpy(zero_copy_only=False) for texts in (ours, theirs))
    alike: Bools = our_sizes[our_places] == their_sizes[their_places]
    maybe = np.flatnonzero(alike)
    left, right = ours.take(pa.array(our_places[maybe])), theirs.take(pa.array(their_places[maybe]))
    alike[maybe] = is_true(pc.equal(left, right))
    return alike


def _places(start: _Ints, length: _Ints) -> tuple[_Ints, _Ints]:
    """All places of ranges, one range after another, and where each range begins among them."""
    offsets = np.concatenate([[0], np.cumsum(length)])
    return np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], length), offsets


def _num_in(turns: ColumnTurns, flags: Bools) -> _Ints:
    """Flagged turns of each row."""
    before: _Ints = np.concatenate([[0], np.cumsum(flags)])
    return before[turns.stop] - before[turns.start]


def _starts_with_answer(turns: ColumnTurns) -> Bools:
    found = turns.length > 0
    found[found] = turns.role[turns.start[found]] == _ASSISTANT
    return found


def _check_null(columns: Mapping[str, pa.Array], names: Sequence[str], good: Bools) -> None:
    """Take only rows in which these columns, where they are there, are null."""
    for name in names:
        if name in columns:
            good &= _is_null(columns[name])


def _check_last(turns: ColumnTurns, role: int, good: Bools) -> None:
    """Take only rows whose last turn is of this role and not only white space."""
    good &= turns.length > 0
    last = turns.stop[good] - 1
    good[good] = (turns.role[last] == role) & _is_written(turns.text, last)


def _is_written(texts: pa.Array, places: _Ints) -> Bools:
    """Whether the texts at these places hold more than white space."""
    heads = pc.binary_slice(texts.cast(pa.binary()), 0, 1)
    written = is_true(pc.is_in(heads, value_set=_VISIBLE))[places]
    unsure = np.flatnonzero(~written)
    written[unsure] = [bool(text.strip()) for text in texts.take(pa.array(places[unsure])).to_pylist()]
    return written


def _is_null(column: pa.Array) -> Bools:
    return is_true(column.is_null())


def is_true(found: pa.Array) -> Bools:
    """Arrow's truth values as numpy's; null is false."""
    values: Bools = pc.fill_null(found, fill_value=False).to_numpy(zero_copy_only=False)
    return values

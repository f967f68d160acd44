"""Which columns of a source hold the prompt, the answers and the scores: as the config says, or by their names.

Spellings that leave no doubt are read without configuration. For other names there is `proposal`, the lines of YAML
with the columns that come nearest.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat

from pipeline.errors import SchemaError
from pipeline.schema import CHOSEN, PROMPT, REJECTED, REWARD_CHOSEN, REWARD_REJECTED
from pipeline.shown import listed, shown
from pipeline.sources.columns import Columns, Kind, Row, empty_table, kinds_of
from pipeline.sources.compared import NUMBERS
from pipeline.sources.mapping import ColumnMap, is_list, says_number
from pipeline.sources.rows import TURNS_OR_TEXT, prompt_text_column
from pipeline.sources.scores import ALL_SCORE_COLUMNS, OTHER_REWARDS
from pipeline.sources.turns import ROLES
from pipeline.sources.unpaired import ONE_SCORE

_SIDES: Final = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("preferred_response", "dispreferred_response"),
    ("preferred", "dispreferred"),
    ("response_j", "response_k"),  # StackExchange, paired
    # ms-swift: the messages end with the chosen answer
    ("messages", "rejected_response"),
    ("messages", "rejected_messages"),
    ("response", "rejected_response"),
)
_MESSAGES: Final = "messages"
_DIALOGUES: Final = (_MESSAGES, "conversations", "conversation")
_PROMPT_TURNS: Final = (*_DIALOGUES, "trajectory", "context")
_PROMPT_TEXTS: Final = ("query", "user_input", "user_prompt")
_PLACES: Final[Sequence[Mapping[str, tuple[str, ...]]]] = (
    {
        PROMPT: ("info", "post"),
        "response_0": ("summaries", "0", "text"),
        "response_1": ("summaries", "1", "text"),
    },
    {PROMPT: ("orig_instruction",), **{name: (name,) for name in ("orig_response_A", "orig_response_B")}},
)
"""Where prompt and answers stand in OpenAI's summarize_from_feedback and in Prometheus' preferences."""
SPELLINGS: Final = frozenset({path[0] for places in _PLACES for path in places.values()}).union(
    _PROMPT_TURNS, _PROMPT_TEXTS, *_SIDES
)
"""Columns of the source that are read under another name."""

_MEANINGS: Final[Mapping[str, Sequence[str]]] = {
    PROMPT: [
        "prompt",
        "question",
        "q",
        "query",
        "instruction",
        "input",
        "messages",
        "conversation",
        "dialogue",
        "context",
        "problem",
    ],
    CHOSEN: ["chosen", "good", "better", "best", "preferred", "winner", "win", "accepted", "positive", "pos", "edited"],
    REJECTED: [
        "rejected",
        "bad",
        "worse",
        "worst",
        "dispreferred",
        "loser",
        "lose",
        "negative",
        "neg",
        "declined",
        "original",
        "non",
        "not",
        "less",
    ],
    "completion": ["completion", "response", "answer", "reply", "output"],
    "winner": ["winner", "preference", "pref", "preferred", "better", "choice", "label"],
    "label": ["label", "liked", "desirable", "chosen", "accepted", "thumbs"],
}
_LABELS: Final = ("winner", "label")
_UNKNOWN: Final = "COLUMN"
_NEGATIONS: Final = frozenset({"non", "not", "less"})
_REWARDS: Final = {CHOSEN: REWARD_CHOSEN, REJECTED: REWARD_REJECTED}
_NEAR: Final = 0.75
_EXACT: Final = 3  # letters; of a word of no more, "post" would come near to "pos"
_DEEPEST: Final = 4
_ROLE: Final = re.compile(r"[\w.-]{1,32}")  # anything else may be the text of a row
_ROLES_SHOWN: Final = 8
_PATHS_SHOWN: Final = 50
_PATHS_TRIED: Final = 1000


def plan_map(
    columns: Mapping[str, str],
    roles: Mapping[str, str],
    schema: pa.Schema | None,
    rows: Sequence[Row],
    rewards: Iterable[str] = (),
) -> ColumnMap:
    """How the rows of a source are mapped; `columns` and `roles` as in the config, `rows` the first ones as read.

    rewards: columns of rewards that have names.

    Raises:
        SchemaError: the source has no column of a name in `columns`.
    """
    paths = {name: _path(name, place, schema, rows) for name, place in columns.items()}
    mapped = ColumnMap(paths=paths, roles=roles)
    for places in _PLACES:
        if paths.keys().isdisjoint(places) and all(_is_there(path, schema, rows) for path in places.values()):
            mapped = replace(mapped, paths={**paths, **places})
    plain = [mapped.of_row(row) for row in rows]
    spelled = _spelled(mapped_kinds(mapped, schema, plain), plain)
    mapped = replace(mapped, paths={**mapped.paths, **{name: (column,) for name, column in spelled.items()}})
    scores = (*ALL_SCORE_COLUMNS, *NUMBERS, *ONE_SCORE, *rewards)
    names = (name for name in scores if _holds_numbers([mapped.value(row, name) for row in rows]))
    return replace(mapped, numbers=frozenset(names))


def mapped_kinds(mapped: ColumnMap, schema: pa.Schema | None, rows: Sequence[Row]) -> dict[str, Kind]:
    """Kinds of the mapped columns; `rows` as mapped."""
    if schema is not None:
        schema = mapped.of_table(empty_table(schema), mapped.names(schema.names)).schema
    return kinds_of(schema, rows)


def paths_of(schema: pa.Schema | None, rows: Sequence[Row]) -> dict[str, Kind]:
    """Every column and every field of an object in one, by its path with dots, with the kind of what it holds."""
    found: dict[str, Kind] = {}
    levels = [("", schema, rows)]
    for prefix, fields, values in levels:
        plain = [ColumnMap().of_row(value) for value in values]
        for name, kind in mapped_kinds(ColumnMap(), fields, plain).items():
            found[f"{prefix}{name}"] = kind
            if kind is not Kind.OTHER or prefix.count(".") == _DEEPEST:
                continue
            below = [value[name] for value in values if isinstance(value.get(name), Mapping)]
            inner = None if fields is None else fields.field(name).type
            if inner is not None and pat.is_struct(inner):
                levels.append((f"{prefix}{name}.", pa.schema([*inner]), below))
            elif fields is None and below:
                levels.append((f"{prefix}{name}.", None, below))
    return found


def proposal(paths: Columns, lacking: Sequence[str] = ()) -> str:
    """The lines of YAML that name the prompt and the two answers, filled in with the nearest columns of the source.

    lacking: names to ask for if no column comes near to the answers. Empty where the columns have these names already.
    """
    paths = dict(itertools.islice(paths.items(), _PATHS_TRIED))
    texts = [path for path, kind in paths.items() if kind in TURNS_OR_TEXT]
    texts += [f"{path}.0" for path, kind in paths.items() if kind is Kind.TEXTS]
    numbers = [path for path, kind in paths.items() if kind is Kind.NUMBER]
    flags = [path for path, kind in paths.items() if kind in {Kind.FLAG, Kind.NUMBER, Kind.TEXT}]
    found: dict[str, str] = {}
    for name in (PROMPT, CHOSEN, REJECTED):
        near = (path for path in texts if path not in found.values())
        found[name] = _nearest(name, _MEANINGS[name], near) or _UNKNOWN
    if lacking and _UNKNOWN in (found[CHOSEN], found[REJECTED]):
        kinds = {name: flags if name in _LABELS else texts for name in lacking}
        found = {name: _nearest(name, _MEANINGS[name], kinds[name]) or _UNKNOWN for name in lacking}
    rewards = {reward: _nearest(reward, _MEANINGS[side], numbers) for side, reward in _REWARDS.items()}
    if all(rewards.values()) and (*rewards.values(),) not in OTHER_REWARDS:
        found |= rewards
    named = ", ".join(f"{name}: {shown(path)}" for name, path in found.items() if name != path)
    return f"source:\n  columns: {{{named}}}" if named else ""


def roles_to_name(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """What to write about roles in these columns of mapped rows that no chat template knows; empty without any."""
    found: dict[str, str] = {}
    for row, name in itertools.product(rows, columns):
        value = row.get(name)
        turns = value if isinstance(value, list) else []
        for place, turn in enumerate(turns, 1):
            role = turn.get("role") if isinstance(turn, Mapping) else None
            if isinstance(role, str) and role not in ROLES and _ROLE.fullmatch(role):
                answers = place == len(turns) and name in {CHOSEN, REJECTED}
                found[role] = "assistant" if answers else found.get(role, "user")
    named = ", ".join(f"{shown(role)}: {stands_for}" for role, stands_for in sorted(found.items())[:_ROLES_SHOWN])
    return f"roles are not known; say what they stand for, such as\nsource:\n  roles: {{{named}}}" if named else ""


def _path(name: str, place: str, schema: pa.Schema | None, rows: Sequence[Row]) -> tuple[str, ...]:
    """The column of this name, or the column and the fields below it that a name with dots means."""
    path = next((path for path in _splits(place.split(".")) if _is_there(path, schema, rows)), None)
    if path is not None:
        return path
    found = paths_of(schema, rows)
    near = difflib.get_close_matches(place, [*found][:_PATHS_TRIED], n=3)
    hint = f" Did you mean {' or '.join(map(shown, near))}?" if near else ""
    raise SchemaError(
        f"source.columns: {shown(name)} is to come from {shown(place)}, which is not there; "
        f"the source has {listed([*found][:_PATHS_SHOWN])}.{hint}"
    )


def _splits(parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The paths that a name with dots can mean; names may hold dots themselves, the longest are tried first."""
    for size in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:size]), parts[size:]
        yield from ((head, *tail) for tail in _splits(rest)) if rest else [(head,)]


def _is_there(path: tuple[str, ...], schema: pa.Schema | None, rows: Sequence[Row]) -> bool:
    """Whether the schema, or a row where there is none, has a value of this path."""
    if schema is None:
        return any(ColumnMap(paths={"": path}).value(row, "") is not None for row in rows)
    inner = pa.struct([*schema])
    for key in path:
        if is_list(inner) and key.isdecimal():
            inner = inner.value_type
        elif pat.is_struct(inner) and inner.get_field_index(key) >= 0:
            inner = inner.field(key).type
        else:
            return False
    return True


def _spelled(columns: Columns, rows: Sequence[Row]) -> dict[str, str]:
    """Columns of another spelling by the name that the formats read."""
    found = {}
    sides = {CHOSEN: CHOSEN, REJECTED: REJECTED}
    has_prompt = PROMPT in columns or prompt_text_column(columns) is not None
    text = None if has_prompt else next((name for name in _PROMPT_TEXTS if columns.get(name) is Kind.TEXT), None)
    if CHOSEN not in columns and REJECTED not in columns:
        named = next((pair for pair in _SIDES if all(columns.get(name) in TURNS_OR_TEXT for name in pair)), None)
        if named is None:
            dialogue = next((name for name in _DIALOGUES if columns.get(name) is Kind.TURNS), _MESSAGES)
            found = {} if _MESSAGES in columns or dialogue == _MESSAGES else {_MESSAGES: dialogue}
            return {**found, PROMPT: text} if text else found
        sides = dict(zip(sides, named, strict=True))
        found = dict(sides)
    if has_prompt or not _are_answers(rows, sides.values()):
        return found
    if text:
        return {**found, PROMPT: text}
    turns = next(
        (name for name in _PROMPT_TURNS if columns.get(name) is Kind.TURNS and name not in sides.values()), None
    )
    return {**found, PROMPT: turns} if turns else found


def _are_answers(rows: Sequence[Row], names: Iterable[str]) -> bool:
    """Whether most values of these columns are answers alone, not dialogues."""
    values = [row.get(name) for row in rows for name in names]
    values = [value for value in values if value]
    bare: list[bool] = [
        isinstance(value, str)
        or (isinstance(value, list) and isinstance(value[0], Mapping) and value[0].get("role") == "assistant")
        for value in values
    ]
    return 2 * sum(bare) > len(bare)


def _holds_numbers(values: Sequence[Any]) -> bool:
    """Whether most of the values, or of the items of lists, are texts of numbers."""
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    texts = [item for item in items if item is not None]
    return 2 * sum(isinstance(text, str) and says_number(text) for text in texts) > len(texts)


def _nearest(name: str, words: Sequence[str], paths: Iterable[str]) -> str:
    """The path that comes nearest to a name or to words of its meaning; empty if none does."""
    nearness = {path: 2.0 if path == name else _nearness(path, words) for path in paths}
    best = max(nearness, key=nearness.__getitem__, default="")
    return best if best and nearness[best] >= _NEAR else ""


def _nearness(path: str, words: Sequence[str]) -> float:
    """How near a path comes to one of the words, from 0 to 1."""
    parts = path.lower().replace(".", "_").replace("-", "_").split("_")
    if parts[-1] == "id" or (not _NEGATIONS.isdisjoint(parts) and _NEGATIONS.isdisjoint(words)):
        return 0.0
    words = [word for word in words if len(word) > _EXACT or word in parts]
    return max(difflib.SequenceMatcher(None, part, word).ratio() for part in parts for word in words)

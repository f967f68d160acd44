"""An inspection as text for the terminal and as JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from pipeline.schema import CHOSEN, ID, PROMPT, REJECTED
from pipeline.shown import shown, shown_path
from pipeline.sources.files import ignored_text
from pipeline.sources.inspect import Inspection
from pipeline.sources.rows import PLAIN_KEYS

_LONGEST_TYPE: Final = 400


def render(found: Inspection) -> str:
    """The inspection as plain text for a terminal."""
    counts = "pairs not counted: no format"
    if found.format:
        tools = f"{found.num_with_tools:,} with tools"
        counts = f"{found.num_pairs:,} pairs, {found.num_with_system:,} with a system turn, {tools}"
        if found.num_with_fields:
            counts += f", {found.num_with_fields:,} with tool calls or reasoning"
    out = [
        f"source    {shown_path(found.root)}",
        *([f"split     {found.part}"] if found.part else []),
        f"files     {found.num_files:,} ({', '.join(found.file_kinds)}), {found.num_bytes:,} bytes",
        *([f"ignored   {ignored_text(found.ignored)}"] if found.ignored else []),
        f"rows      {found.num_rows:,}",
        f"format    {found.format or 'unknown'} ({found.decided})",
        "columns",
        *(f"  {shown(name)}: {shown(kind, _LONGEST_TYPE)}" for name, kind in found.columns),
        f"scores    {', '.join(found.score_columns) or 'none'}",
        f"sample    {found.num_sampled:,} rows, {counts}",
    ]
    for title, table in (("turns", found.num_turns), ("characters", found.num_chars), ("tokens", found.num_tokens)):
        if table:
            out.append(f"{title:<12}{'min':>10}{'median':>10}{'p95':>10}{'max':>10}")
            out += [f"  {side:<10}" + "".join(f"{figure:>10,}" for figure in table[side]) for side in table]
    if found.format or found.drop_reasons:
        out.append(f"dropped   {sum(found.drop_reasons.values()):,} of the sample")
    out += [f"  {reason}: {count:,}" for reason, count in found.drop_reasons.items()]
    out.append("problems" if found.problems else "problems  none")
    out += [f"  {line}" for problem in found.problems for line in problem.splitlines()]
    for example in found.examples:
        out += [f"pair {shown(example[ID])}", *_example_lines(example)]
    return "\n".join(out)


def as_json(found: Inspection) -> str:
    """The inspection for machines, in one line."""
    own = {field.name: getattr(found, field.name) for field in fields(found)}
    figures = {
        name: {side: spread._asdict() for side, spread in own.pop(name).items()}
        for name in ("num_turns", "num_chars", "num_tokens")
    }
    named = {
        "format": own.pop("format"),
        "rows": own.pop("num_rows"),
        "pairs": own.pop("num_pairs"),
        "dropped": own.pop("drop_reasons"),
        "problems": own.pop("problems"),
        "columns": dict(own.pop("columns")),
        "splits": own.pop("splits"),
        "examples": own.pop("examples"),
    }
    return json.dumps({**named, **own, **figures})


def _example_lines(example: Mapping[str, Any]) -> Iterator[str]:
    for side in (PROMPT, CHOSEN, REJECTED):
        reward = example.get(f"reward_{side}")
        yield f"  {side}" + ("" if reward is None else f" (reward {reward:g})")
        for turn in example[side]:
            further = {name: value for name, value in turn.items() if name not in PLAIN_KEYS}
            lines = [*(turn.get("content") or "").splitlines(), *([json.dumps(further)] if further else [])]
            yield f"    {turn['role']}: " + "\n      ".join(lines)

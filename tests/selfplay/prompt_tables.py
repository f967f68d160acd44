"""Tables of prompts and of annotated responses, from few words."""

import pyarrow as pa

from pipeline import schema as s


def user(text):
    return [{"role": "user", "content": text}]


def prompt_row(id_, prompt, **columns):
    turns = user(prompt) if isinstance(prompt, str) else prompt
    return {s.ID: id_, s.PROMPT: turns, s.STRATEGY: "seed", s.ROUND: 0, s.STATUS: s.KEPT, **columns}


def prompts(*rows):
    return pa.Table.from_pylist([prompt_row(*row) if isinstance(row, tuple) else row for row in rows], s.PROMPT_SCHEMA)


def annotated_row(id_, responses, **columns):
    """responses: (text, reward) or (text, reward, num_tokens) or (text, reward, num_tokens, finish_reason)."""
    full = [(*response, 10, "stop")[:4] if len(response) == 2 else (*response, "stop")[:4] for response in responses]
    texts, rewards, tokens, reasons = map(list, zip(*full, strict=True)) if full else ([], [], [], [])
    own = {s.RESPONSES: texts, s.RESPONSE_REWARDS: rewards, s.RESPONSE_TOKENS: tokens, s.FINISH_REASONS: reasons}
    return prompt_row(id_, f"Question {id_}?", **{**own, s.NUM_TOKENS_PROMPT: 7, **columns})


def annotated(*rows):
    return pa.Table.from_pylist(
        [annotated_row(*row) if isinstance(row, tuple) else row for row in rows], s.ANNOTATED_SCHEMA
    )


def dropped_reasons(table):
    return {row[s.ID]: row[s.DROP_REASON] for row in table.to_pylist() if row[s.STATUS] == s.DROPPED}


def kept_ids(table):
    return [row[s.ID] for row in table.to_pylist() if row[s.STATUS] == s.KEPT]

"""A row on which template or tokenizer fail is dropped alone, and the log tells of it without its text."""

import json
import logging

import fsspec
import numpy as np
import pytest

from pipeline.config import Source, Tokens
from pipeline.models.prompts import DialogueTokenizer, PairTokenizer
from pipeline.rewards.classifier import completions
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from pipeline.steps.reward_stage import dialogues_as_ids, id_columns
from pipeline.steps.score_stages import (
    CHOSEN_IDS,
    CHOSEN_START,
    REJECTED_IDS,
    REJECTED_START,
    Tokenise,
    pair_groups,
)
from tests.fixtures_models import CHATML, tiny_tokenizer
from tests.models.pairs import demo_pairs, tokenized_pairs

REWARD_CHOSEN_IDS, REWARD_REJECTED_IDS = id_columns("")
FAILING = "{% if 'secret' in messages[0]['content'] %}{{ 1 // 0 }}{% endif %}" + CHATML


@pytest.mark.parametrize("dialogues", [False, True])
def test_a_row_that_fails_leaves_its_neighbours_and_is_told_once(dialogues, tmp_path, caplog):
    prompts = ["Why?", "A secret.", "What?", "Another secret."]
    rows = [{"key": f"row-{i}", "prompt": p, "chosen": "yes", "rejected": "no"} for i, p in enumerate(prompts)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reader, files = open_source(
        fsspec.filesystem("file"),
        str(tmp_path),
        Source(path="s", id_column="key"),
        rewards=False,
        policy_logps=False,
        reference_logps=False,
    )
    table = reader.read(plan_shards(files, 10)[0])
    tokenizer = tiny_tokenizer(FAILING)
    tokenizer.name_or_path = str(tmp_path)  # of its own, as the log tells of a class once
    stage = Tokenise(DialogueTokenizer(tokenizer, 100)) if dialogues else None
    stage = stage or Tokenise(PairTokenizer(tokenizer, Tokens()))
    with caplog.at_level(logging.WARNING):
        found = stage(table).to_pylist()
    assert [row["drop_reason"] for row in found] == [None, "template_error"] * 2
    assert [row[REWARD_CHOSEN_IDS if dialogues else CHOSEN_IDS] is None for row in found] == [False, True] * 2
    (told,) = [record.getMessage() for record in caplog.records if "ZeroDivisionError" in record.getMessage()]
    assert "row-1" in told
    assert "secret" not in caplog.text


def test_groups_hold_the_token_ids_of_the_rows_asked_for():
    table = tokenized_pairs(demo_pairs(4))
    rows = table.to_pylist()
    asked = np.asarray([1, 3])
    for made, ids, starts in (
        (pair_groups(table, asked), (CHOSEN_IDS, REJECTED_IDS), (CHOSEN_START, REJECTED_START)),
        (completions(dialogues_as_ids(table, asked)), (REWARD_CHOSEN_IDS, REWARD_REJECTED_IDS), None),
    ):
        assert [[c.ids.tolist() for c in group] for group in made] == [[rows[i][name] for name in ids] for i in asked]
        expected = [[rows[i][name] for name in starts] if starts else [0, 0] for i in asked]
        assert [[c.start for c in group] for group in made] == expected
    assert pair_groups(table.slice(0, 0), asked[:0]) == dialogues_as_ids(table, asked[:0]) == []

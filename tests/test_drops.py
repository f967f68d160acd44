"""Every reason for which a row is dropped is listed in one place, and no other can be written."""

import ast
import pickle
from pathlib import Path
from typing import get_args

import pytest

import pipeline
from pipeline.drops import Drop, Reason, StageName, check_drop
from pipeline.errors import IntegrityError

PACKAGE = Path(pipeline.__file__).parent


@pytest.mark.parametrize("reason", Reason)
def test_reason_says_where_it_comes_from_and_what_it_means(reason: Reason):
    assert reason.stages
    assert {*reason.stages} <= {*get_args(StageName)}
    assert len(reason.meaning.split()) > 2
    assert pickle.loads(pickle.dumps(reason)) is reason
    for stage in reason.stages:
        check_drop(stage, str(reason), "here")


@pytest.mark.parametrize(
    ("stage", "reason"),
    [("tokens", "empty_prompt"), ("policy", "empty_prompt"), ("source", "bad"), ("source", None), (None, "row_error")],
)
def test_anything_else_is_refused(stage: str | None, reason: str | None):
    with pytest.raises(IntegrityError, match="does not list"):
        check_drop(stage, reason, "here")


def test_every_reason_is_given_by_some_code():
    """A reason that nothing gives is one that reports would look for in vain."""
    used = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }
    assert {reason.name for reason in Reason} <= used


def test_dropped_row_bears_stage_and_reason():
    assert Drop(Reason.EMPTY_PROMPT, "filter").columns == {
        "status": "dropped",
        "drop_stage": "filter",
        "drop_reason": "empty_prompt",
    }

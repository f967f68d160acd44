"""auto takes the one format that fits, and refuses where two do or none does."""

import pytest

from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.sources.columns import Kind, kinds_of_rows
from pipeline.sources.formats import resolve_format
from pipeline.sources.naming import paths_of
from tests.sources import layouts as to

P = to.pair()
TURNS_AND_LISTS = {**to.as_implicit(P), "responses": ["a", "b"], "rewards": [1.0, 2.0]}


def detected(*rows):
    return resolve_format("auto", kinds_of_rows(rows), rows, paths_of(None, rows))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", to.as_messages(to.LONG_PAIR)),
        ("messages", to.as_repeating(P)),
        ("messages", {**P, "chosen": "text", "rejected": "other"}),
        ("implicit", to.as_implicit(P)),
        ("implicit", {**to.as_implicit(P), "prompt": None}),
        ("binarized", to.as_binarized(P)),
        ("strings", to.as_strings(P)),
        ("strings", {"instruction": "i", "input": "", "chosen": "a", "rejected": "b"}),
        ("strings", {**to.as_strings(P), "generations": ["a", "b"]}),
        ("transcript", to.as_transcript(P)),
        ("transcript", {"prompt": "\n\nHuman: x\n\nAssistant:", "chosen": " a", "rejected": " b"}),
        ("scored", {**P, "policy_logp_chosen": -1.0}),
        ("scored", {**P, "status": "kept"}),
        ("candidates", {**to.as_candidates(P), **to.as_implicit(P), "prompt": "x"}),
        ("candidates", to.as_candidates(P)),
        ("responses", to.as_responses(P)),
        ("responses", TURNS_AND_LISTS),
        ("judged", {"instruction": "i", "generations": ["a", "b"], "ratings": [1, 2]}),
    ],
)
def test_layout_is_told_from_its_columns(name, row):
    assert detected(row) == name


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({**to.as_candidates(P), **TURNS_AND_LISTS}, "candidates, responses"),
        ({**TURNS_AND_LISTS, "generations": ["a"], "ratings": [1]}, "responses, judged"),
        ({**to.as_transcript(P), "prompt": "x"}, "strings, transcript"),
    ],
)
def test_ambiguous_layout_is_refused_with_the_values_to_choose_from(row, names):
    with pytest.raises(SourceError, match=rf"Set source\.format to one of: {names}\."):
        detected(row)


def test_prompts_of_which_some_are_transcripts_are_ambiguous():
    open_ended = {"prompt": "\n\nHuman: x\n\nAssistant:", "chosen": " a", "rejected": " b"}
    with pytest.raises(SourceError, match="strings, transcript"):
        detected(open_ended, to.as_strings(P))


@pytest.mark.parametrize("row", [{"text": "x"}, {"chosen": "a", "rejected": "b"}, {"chosen": 1, "rejected": 2}])
def test_unknown_layout_is_refused_with_every_format(row):
    with pytest.raises(SourceError, match=r"of no known format: it has \w+ \((text|number)\)") as caught:
        detected(row)
    assert "binarized:" in str(caught.value)


def test_sample_with_one_odd_value_is_told_by_the_rest():
    rows = [to.as_strings(P), {**to.as_strings(P), "chosen": ["x"]}, to.as_strings(P)]
    assert kinds_of_rows(rows)["chosen"] is Kind.TEXT
    assert detected(*rows) == "strings"


def test_unknown_format_name_is_refused_with_near_ones():
    with pytest.raises(ConfigError, match=r"'transcripts' is unknown; did you mean transcript\?"):
        resolve_format("transcripts", {}, [])


def test_named_format_without_its_columns_is_refused():
    row = to.as_implicit(P)
    with pytest.raises(SchemaError, match=r"source\.format messages needs prompt \(turns\); the source has chosen"):
        resolve_format("messages", kinds_of_rows([row]), [row])


def test_named_format_settles_what_is_ambiguous():
    row = {**to.as_transcript(P), "prompt": "x"}
    assert resolve_format("transcript", kinds_of_rows([row]), [row]) == "transcript"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "p", "chosn": "a", "rejected": "b"}, "chosen: chosn"),
        (
            {"id": "1", "task": {"question_text": "q"}, "good_answer": "a", "bad_answer": "b", "score": 1.0},
            "prompt: task.question_text, chosen: good_answer, rejected: bad_answer",
        ),
        (
            {"problem": "q", "winner": {"text": "a", "reward": 2}, "loser": {"text": "b", "reward": 1}},
            "prompt: problem, chosen: winner.text, rejected: loser.text, "
            "reward_chosen: winner.reward, reward_rejected: loser.reward",
        ),
        (
            {"less_preferred": "b", "preferred_one": "a", "q": "q"},
            "prompt: q, chosen: preferred_one, rejected: less_preferred",
        ),
        ({"q": "q", "first": "a", "second": "b"}, "prompt: q, chosen: COLUMN, rejected: COLUMN"),
    ],
)
def test_error_shows_the_columns_to_name(row, columns):
    with pytest.raises(SourceError) as error:
        detected(row)
    assert f"source:\n  columns: {{{columns}}}\n" in str(error.value)
    assert "source.format" not in str(error.value)


def test_unknown_format_without_near_ones_lists_the_known():
    with pytest.raises(ConfigError, match=r"'zzz' is unknown\. Known: auto, messages"):
        resolve_format("zzz", {}, [])


@pytest.mark.parametrize(
    ("row", "lines"),
    [
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}, "{chosen: chosen.0, rejected: rejected.0}"),
        ({"prompt_id": "1", "text": "q", "answer_a": "a", "answer_b": "b", "overall_pref": "A"}, "{prompt: COLUMN}"),
        ({"prompt": "q", "completion_a": "a", "completion_b": "b", "verdict": "B"}, "{winner: COLUMN}"),
        ({"prompt": "q", "model_response": "a", "score": 3}, "{completion: model_response}"),
        ({"prompt": "q", "edited_response": "a", "original_response": "b"},
         "{chosen: edited_response, rejected: original_response}"),
    ],
)  # fmt: skip
def test_mapping_to_write_names_what_is_missing(row, lines):
    with pytest.raises(SourceError) as refused:
        detected(row)
    assert f"columns: {lines}\n" in str(refused.value)

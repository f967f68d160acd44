"""Every format turns what it holds into the same pair, with the same id."""

import pytest
from hypothesis import given

from pipeline.drops import DropRow
from pipeline.sources.formats import FORMATS
from pipeline.sources.rows import content_digest
from tests.sources import layouts as to

EXPLICIT = {"repeating": "messages"}


def digest(p):
    return content_digest(p["prompt"], p["chosen"], p["rejected"])


def converted(name, row):
    return FORMATS[name].convert(row)


def digest_of_row(name, row):
    got = converted(name, row)
    return content_digest(got.prompt, got.chosen, got.rejected, got.tools)


@given(to.pairs())
def test_any_pair_has_one_id_in_every_layout_of_messages(p):
    for layout, write in to.ANY_TURNS.items():
        assert digest_of_row(EXPLICIT.get(layout, layout), write(p)) == digest(p), layout
    assert digest_of_row("scored", {**p, "status": "kept"}) == digest(p)


@given(to.pairs())
def test_pair_picked_from_candidates_is_the_pair_that_was_written(p):
    for name, write in to.PICKED.items():
        assert digest_of_row(name, write(p)) == digest(p), name


@given(to.pairs(content=to.said, system=False))
def test_transcript_gives_back_the_turns_it_was_written_from(p):
    assert digest_of_row("transcript", to.as_transcript(p)) == digest(p)


@given(to.pairs())
def test_strings_give_a_user_turn_and_assistant_turns(p):
    short = {**p, "prompt": [t for t in p["prompt"] if t["role"] == "system"] + p["prompt"][-1:]}
    assert digest_of_row("strings", to.as_strings(short)) == digest(short)


def test_format_names_are_the_keys_of_the_registry():
    assert all(name == known.name for name, known in FORMATS.items())


def test_instruction_and_input_are_joined_into_the_prompt():
    got = converted("strings", {"instruction": "Translate.", "input": "Haus", "chosen": "house", "rejected": "mouse"})
    assert got.prompt == [to.turn("user", "Translate.\nHaus")]


def test_text_completions_go_with_a_message_prompt():
    got = converted("messages", {"prompt": [to.turn("user", "Hi")], "chosen": "Hello!", "rejected": "What?"})
    assert got.chosen == [to.turn("assistant", "Hello!")]


def test_single_message_object_is_a_completion_of_one_turn():
    row = {**to.pair(), "chosen": to.turn("assistant", "Yes."), "rejected": to.turn("assistant", "No.")}
    assert converted("messages", row).chosen == [to.turn("assistant", "Yes.")]


def test_dialogues_are_trusted_over_a_prompt_text_that_differs():
    row = {**to.as_binarized(to.LONG_PAIR), "prompt": "something else"}
    assert digest_of_row("binarized", row) == digest(to.LONG_PAIR)


def test_prompt_text_is_used_where_the_messages_are_answers_only():
    p = to.pair()
    row = {"prompt": p["prompt"][0]["content"], "chosen": p["chosen"], "rejected": p["rejected"]}
    assert digest_of_row("binarized", row) == digest(p)


def test_common_prefix_gives_its_last_assistant_turns_back_to_the_answers():
    shared = [to.turn("user", "Count."), to.turn("assistant", "One.")]
    row = {
        "chosen": [*shared, to.turn("assistant", "Two.")],
        "rejected": [*shared, to.turn("assistant", "Ten.")],
    }
    got = converted("implicit", row)
    assert got.prompt == shared[:1]
    assert [t["content"] for t in got.chosen] == ["One.", "Two."]


def test_transcript_goes_on_from_a_prompt_that_ends_openly():
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " Go away."}
    assert digest_of_row("transcript", row) == digest(to.pair("Hi", "Hello.", "Go away."))


def test_transcript_keeps_blank_lines_inside_a_turn():
    row = to.as_transcript(to.pair("List two.", "One\n\nTwo", "None"))
    assert converted("transcript", row).chosen == [to.turn("assistant", "One\n\nTwo")]


def test_extra_message_keys_and_null_extras_leave_no_trace():
    p = to.pair()
    extra = {side: [{**t, "tool_calls": None, "name": None, "id": 7} for t in p[side]] for side in ("prompt", "chosen")}
    assert digest_of_row("messages", {**p, **extra}) == digest(p)


def test_content_given_as_text_parts_is_joined():
    p = to.pair(prompt="ab")
    row = {**p, "prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}
    assert digest_of_row("messages", row) == digest(p)


def test_tools_as_a_list_and_as_json_text_are_the_same():
    as_list = [{"type": "function", "function": {"name": "now", "description": None}}]
    as_text = '[{"type": "function",\n "function": {"name": "now"}}]'
    got = [converted("messages", {**to.pair(), "tools": tools}).tools for tools in (as_list, as_text)]
    assert got[0] == got[1] == '[{"type":"function","function":{"name":"now"}}]'


@pytest.mark.parametrize("nothing", [None, "", []])
def test_absent_tools_are_null(nothing):
    assert converted("messages", {**to.pair(), "tools": nothing}).tools is None


def test_chosen_and_rejected_get_the_rewards_of_their_candidates():
    p = to.pair()
    texts = [p["rejected"][0]["content"], "other", f" {p['chosen'][0]['content']}\n"]
    row = {**to.as_implicit(p), "all_generated_responses": texts, "all_rm_scores": [0.5, 9.0, 3.0]}
    rewards = converted("candidates", row).rewards
    assert (rewards.chosen, rewards.rejected, rewards.all) == (3.0, 0.5, (0.5, 9.0, 3.0))


def test_first_of_tied_candidates_wins():
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "rewards": [0.0, 1.0, 1.0, 0.0]}
    got = converted("responses", row)
    assert (got.chosen[0]["content"], got.rejected[0]["content"]) == ("b", "a")
    assert got.picked


def test_equal_candidates_with_one_score_are_not_ambiguous():
    p = to.pair()
    texts = [p["chosen"][0]["content"]] * 2 + [p["rejected"][0]["content"]]
    row = {**to.as_implicit(p), "generations": texts, "ratings": [4, 4, 1]}
    assert converted("judged", row).rewards.chosen == 4.0


def test_system_turns_may_stand_later_in_the_prompt_and_be_empty():
    p = {
        **to.pair(),
        "prompt": [to.turn("system", ""), to.turn("user", "a"), to.turn("system", "b"), to.turn("user", "c")],
    }
    assert digest_of_row("messages", p) == digest(p)


def test_row_of_a_scored_dataset_that_was_dropped_stays_dropped():
    with pytest.raises(DropRow):
        converted("scored", {**to.pair(), "status": "dropped"})

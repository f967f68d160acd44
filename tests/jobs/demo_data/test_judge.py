"""The rules that label the demo's pairs: each one, on answers where the right verdict is plain."""

import pytest

from jobs.demo_data.judge import Answer, judge

QUESTION = "Why does ice float on water?"


def verdict(text: str, *, finished: bool = True, expect: tuple[str, ...] = ()) -> float:
    return judge(QUESTION, Answer(text=text, finished=finished), expect)


def test_judge_gives_full_marks_to_a_finished_answer_on_topic() -> None:
    assert verdict("Ice is less dense than water, so it floats.") == 1.0


@pytest.mark.parametrize(
    "worse",
    [
        pytest.param("Cats sleep for most of the day and hunt at night.", id="off topic"),
        pytest.param("Ice floats on water. " * 8, id="loop"),
        pytest.param("Ice is less dense than water, so it", id="no closing mark"),
        pytest.param("Ice!", id="too short"),
        pytest.param("", id="empty"),
    ],
)
def test_judge_ranks_a_bad_answer_below_a_good_one(worse: str) -> None:
    assert 0 <= verdict(worse) < verdict("Ice is less dense than water, so it floats.")


def test_judge_marks_down_an_answer_cut_off_at_the_token_limit() -> None:
    text = "Ice is less dense than water, so it floats."
    assert verdict(text, finished=False) == pytest.approx(verdict(text) - 1 / 4)


def test_judge_wants_the_known_fact_as_a_word_of_its_own() -> None:
    assert verdict("The water ice is 36 degrees.", expect=("36",)) > verdict(
        "The water ice is 360 degrees.", expect=("36",)
    )


def test_judge_knows_a_fact_that_ends_in_punctuation() -> None:
    assert verdict("Use open('f') for water ice.", expect=("open(",)) == verdict("Ice on water.", expect=("Ice",))

"""The authors' tokens, worked out by hand on a tokenizer whose every word is one token."""

import pytest

from pipeline.config import Tokens
from pipeline.models.prompts import PairTokenizer
from tests.fixtures_models import tiny_tokenizer
from tests.models.test_prompts import PROMPTED, TEMPLATE, text, turns, word_tokenizer

# [user], the words and </s> of a turn; BOS goes before the prompt, and the answers have no second one.
OVERHEAD_PROMPT, OVERHEAD_RESPONSE = 3, 2


def paper(max_length: int = 2048, max_prompt_length: int = 1800) -> Tokens:
    return Tokens(preset="paper", max_length=max_length, max_prompt_length=max_prompt_length)


def lengths(prompt: int, chosen: int, rejected: int, tokens: Tokens) -> tuple[int, int, int, bool]:
    """Tokens of prompt and answers after truncation, for turns that have these many tokens before it."""
    row = turns(prompt - OVERHEAD_PROMPT, chosen - OVERHEAD_RESPONSE, rejected - OVERHEAD_RESPONSE)
    pair = PairTokenizer(word_tokenizer(), tokens).tokenize(**row)
    return pair.num_tokens_prompt, pair.num_tokens_chosen, pair.num_tokens_rejected, pair.truncated


def test_the_assistant_header_counts_as_response():
    tokenizer = word_tokenizer()
    pair = PairTokenizer(tokenizer, paper()).tokenize(**turns(2, 3, 1))
    assert text(tokenizer, pair.chosen_ids[: pair.chosen_start]) == "<s> [user] p0 p1 </s>"
    assert text(tokenizer, pair.chosen_ids[pair.chosen_start :]) == "[assistant] c0 c1 c2 </s>"
    assert text(tokenizer, pair.rejected_ids) == "<s> [user] p0 p1 </s> [assistant] r0 </s>"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((100, 1948, 50), (100, 1948, 50, False)),
        ((100, 1949, 50), (100, 248, 50, True)),  # one token too many cuts the answer to 2048 - 1800
        ((100, 1949, 1949), (100, 248, 248, True)),
        ((1900, 148, 100), (1900, 148, 100, False)),
        ((1900, 149, 100), (1800, 149, 100, True)),  # the prompt's cut is enough
        ((1900, 248, 10), (1800, 248, 10, True)),
        ((1900, 249, 10), (1800, 248, 10, True)),
    ],
)
def test_truncation_falls_off_the_cliff_where_the_authors_code_does(before, after):
    assert lengths(*before, paper()) == after


def test_the_prompt_keeps_its_end_and_loses_its_bos():
    tokenizer = word_tokenizer()
    pair = PairTokenizer(tokenizer, paper(12, 4)).tokenize(**turns(8, 3, 1))
    assert text(tokenizer, pair.chosen_ids) == "p5 p6 p7 </s> [assistant] c0 c1 c2 </s>"


def test_keep_start_does_not_change_the_paper_preset():
    tokens = Tokens(preset="paper", max_length=12, max_prompt_length=4, truncation="keep_start")
    pair = PairTokenizer(word_tokenizer(), tokens).tokenize(**turns(8, 3, 1))
    assert pair.num_tokens_prompt == 4


def test_bos_and_eos_are_added_only_where_they_are_missing():
    tokenizer = word_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    pair = PairTokenizer(tokenizer, paper()).tokenize(**turns(2, 2, 1))
    assert text(tokenizer, pair.chosen_ids) == "<s> p0 p1 c0 c1 </s>"


def test_an_eos_that_is_not_last_is_followed_by_another():
    tokenizer = tiny_tokenizer()  # its turns end with EOS and a newline
    pair = PairTokenizer(tokenizer, paper()).tokenize(**turns(2, 2, 1))
    assert tokenizer.decode(pair.chosen_ids).endswith("c0 c1<|im_end|>\n<|im_end|>")


def test_an_empty_system_message_goes_first_where_the_template_knows_the_role():
    tokenizer = word_tokenizer(PROMPTED + "{# system #}")
    pair = PairTokenizer(tokenizer, paper()).tokenize(**turns(1, 1, 2))
    assert text(tokenizer, pair.chosen_ids) == "<s> [system] </s> [user] p0 </s> [assistant] c0 </s>"
    row = turns(1, 1, 2)
    row["prompt"].insert(0, {"role": "system", "content": "p9"})
    kept = PairTokenizer(tokenizer, paper()).tokenize(**row)
    assert text(tokenizer, kept.chosen_ids).startswith("<s> [system] p9 </s> [user]")
    assert "[system]" not in TEMPLATE


def test_a_token_that_merges_over_the_seam_moves_to_the_response():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    row = {
        "prompt": [{"role": "user", "content": "the answer is tha"}],
        "chosen": [{"role": "assistant", "content": "t there are many"}],
        "rejected": [{"role": "assistant", "content": "t question"}],
    }
    alone = tokenizer("the answer is tha", add_special_tokens=False)["input_ids"]
    whole = tokenizer("the answer is that there are many", add_special_tokens=False)["input_ids"]
    assert alone != whole[: len(alone)]
    pair = PairTokenizer(tokenizer, paper()).tokenize(**row)
    if isinstance(pair, str):
        assert pair == "boundary_mismatch"
        assert sum(a != b for a, b in zip(alone, whole, strict=False)) > 1
    else:
        assert pair.chosen_ids.tolist() == [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
        assert pair.chosen_start == len(alone)

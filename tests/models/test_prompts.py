"""Templates, response marks and truncation on a tokenizer whose every word is one token."""

import datetime
import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.config import Tokens
from pipeline.errors import ModelError
from pipeline.models import templates, time_limit
from pipeline.models.prompts import DialogueTokenizer, PairTokenizer, TokenizedPair
from tests.fixtures_models import tiny_tokenizer

TEMPLATE = "<s> {% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} </s> {% endfor %}"
PROMPTED = TEMPLATE + "{% if add_generation_prompt %}[assistant] {% endif %}"
LOOP = "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}"
WORDS = [*(f"p{i}" for i in range(3000)), *(f"c{i}" for i in range(3000)), *(f"r{i}" for i in range(3000))]


def word_tokenizer(template: str | None = PROMPTED) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>", "[user]", "[assistant]", "[system]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def words(letter: str, count: int) -> str:
    return " ".join(f"{letter}{i}" for i in range(count))


def turns(prompt: int, chosen: int, rejected: int) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": words("p", prompt)}],
        "chosen": [{"role": "assistant", "content": words("c", chosen)}],
        "rejected": [{"role": "assistant", "content": words("r", rejected)}],
    }


def text(tokenizer, ids) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_trl_marks_the_response_after_the_generation_prompt():
    tokenizer = word_tokenizer()
    pair = PairTokenizer(tokenizer, Tokens()).tokenize(**turns(2, 3, 1))
    assert text(tokenizer, pair.chosen_ids) == "<s> [user] p0 p1 </s> [assistant] c0 c1 c2 </s>"
    assert text(tokenizer, pair.chosen_ids[pair.chosen_start :]) == "c0 c1 c2 </s>"
    assert text(tokenizer, pair.rejected_ids[pair.rejected_start :]) == "r0 </s>"
    assert (pair.num_tokens_prompt, pair.num_tokens_chosen, pair.num_tokens_rejected) == (6, 4, 2)
    assert not pair.truncated
    assert pair.chosen_ids.dtype == "int32"


def test_an_answer_already_begun_goes_on_and_only_the_rest_is_scored():
    tokenizer, rows = word_tokenizer(), turns(2, 3, 1)
    rows["prompt"].append({"role": "assistant", "content": "p8 p9 "})
    pair = PairTokenizer(tokenizer, Tokens()).tokenize(**rows)
    assert text(tokenizer, pair.chosen_ids) == "<s> [user] p0 p1 </s> [assistant] p8 p9 c0 c1 c2 </s>"
    assert text(tokenizer, pair.chosen_ids[pair.chosen_start :]) == "c0 c1 c2 </s>"
    both = DialogueTokenizer(tokenizer, 99).tokenize(**rows)
    assert text(tokenizer, both.rejected_ids) == "<s> [user] p0 p1 </s> [assistant] p8 p9 r0 </s>"
    paper = PairTokenizer(tokenizer, Tokens(preset="paper")).tokenize(**rows)
    assert text(tokenizer, paper.chosen_ids[paper.chosen_start :]) == "[assistant] p8 p9 c0 c1 c2 </s>"


def test_a_prompt_that_reads_differently_alone_starts_the_response_where_it_diverges():
    # The generation prompt opens a thought that the finished dialogue does not show.
    template = PROMPTED.replace("[assistant] {% endif %}", "[assistant] [system] {% endif %}")
    tokenizer = word_tokenizer(template)
    pair = PairTokenizer(tokenizer, Tokens()).tokenize(**turns(2, 3, 1))
    assert text(tokenizer, pair.chosen_ids[pair.chosen_start :]) == "c0 c1 c2 </s>"


def test_keep_start_cuts_responses_and_keep_end_cuts_prompts():
    rows = turns(10, 6, 3)
    start = PairTokenizer(word_tokenizer(), Tokens(max_length=17)).tokenize(**rows)
    assert (start.num_tokens_chosen, start.num_tokens_rejected, start.num_tokens_prompt) == (3, 3, 14)
    end = PairTokenizer(word_tokenizer(), Tokens(max_length=17, truncation="keep_end")).tokenize(**rows)
    assert (end.num_tokens_chosen, end.num_tokens_rejected) == (7, 4)
    assert (end.chosen_start, end.rejected_start) == (10, 13)
    assert start.truncated
    assert end.truncated


def test_keep_end_never_scores_a_token_that_nothing_predicts():
    pair = PairTokenizer(word_tokenizer(), Tokens(max_length=4, truncation="keep_end")).tokenize(**turns(3, 9, 9))
    assert (pair.chosen_start, pair.num_tokens_chosen) == (1, 3)


@pytest.mark.parametrize(
    ("row", "max_length", "reason"),
    [
        (turns(10, 2, 3), 14, "prompt_too_long"),
        ({**turns(2, 3, 3), "rejected": turns(2, 3, 3)["chosen"]}, 2048, "identical_in_template"),
        ({**turns(2, 3, 3), "chosen": []}, 2048, "empty_after_truncation"),
    ],
)
def test_unusable_pairs_give_their_reason(row, max_length, reason):
    assert PairTokenizer(word_tokenizer(), Tokens(max_length=max_length)).tokenize(**row) == reason


def test_answers_that_differ_only_behind_the_cut_are_identical():
    row = turns(2, 3, 3)
    row["rejected"] = [{"role": "assistant", "content": words("c", 3) + " r0"}]
    assert isinstance(PairTokenizer(word_tokenizer(), Tokens(max_length=10)).tokenize(**row), TokenizedPair)
    assert PairTokenizer(word_tokenizer(), Tokens(max_length=9)).tokenize(**row) == "identical_after_truncation"


@pytest.mark.parametrize("preset", ["trl", "paper"])
def test_a_template_that_refuses_a_role_drops_the_row(preset):
    template = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    tokenizer = word_tokenizer(template + "{{ m['content'] }} {% endfor %}")
    row = turns(2, 3, 3)
    row["prompt"] = [{"role": "tool", "content": "p0"}]
    assert PairTokenizer(tokenizer, Tokens(preset=preset)).tokenize(**row) == "template_error"


@pytest.mark.parametrize(
    "code",
    [
        "{{ 1 // 0 }}",
        "{{ range(10**6) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a' * 10**15 }}",
        "{{ '%99999999999999d' % 1 }}",
        "{{ messages.append(1) }}",
        "{{ nothing.at_all }}",
    ],
)
def test_whatever_a_template_raises_drops_the_row(code):
    tokenizer = word_tokenizer("{% if 'c2' in messages[-1]['content'] %}" + code + "{% endif %}" + PROMPTED)
    for tokenize in (
        PairTokenizer(tokenizer, Tokens()).tokenize,
        PairTokenizer(tokenizer, Tokens(preset="paper")).tokenize,
        DialogueTokenizer(tokenizer, 100).tokenize,
    ):
        assert tokenize(**turns(2, 3, 1)) == "template_error"
        assert not isinstance(tokenize(**turns(2, 2, 1)), str)


@pytest.mark.parametrize(
    "loop",
    [
        LOOP,
        "{% macro slow() %}" + LOOP + "{% endmacro %}{{ slow() }}",
        "{% set x %}" + LOOP + "{% endset %}",
        "{% filter upper %}" + LOOP + "{% endfilter %}",
        "{{ lipsum(n=10**9) }}",
    ],
)
def test_a_template_that_takes_too_long_drops_the_row(loop, monkeypatch):
    monkeypatch.setattr(time_limit, "TICK_S", 0.01)
    monkeypatch.setattr(templates, "LIMIT_S", 0.05)
    tokenizer = word_tokenizer("{% if 'c2' in messages[-1]['content'] %}" + loop + "{% endif %}" + PROMPTED)
    pairs = PairTokenizer(tokenizer, Tokens())
    for _ in range(2):
        assert not isinstance(pairs.tokenize(**turns(2, 2, 1)), str)
        assert pairs.tokenize(**turns(2, 3, 1)) == "template_timeout"
        assert pairs.tokenize(**turns(2, 3, 1)) == "template_timeout"
    with pytest.raises(ModelError, match=r"takes longer than 0\.05 s .* 3 rows.* row-7"):
        pairs.tokenize(**turns(2, 3, 1), row="row-7")


def test_a_template_that_makes_too_much_text_drops_the_row():
    tokenizer = word_tokenizer("{% if 'c2' in messages[-1]['content'] %}{{ 'p0 ' * 10**7 }}{% endif %}" + PROMPTED)
    for tokenize in (PairTokenizer(tokenizer, Tokens()).tokenize, DialogueTokenizer(tokenizer, 100).tokenize):
        assert tokenize(**turns(2, 3, 1)) == "template_output_too_long"
        assert not isinstance(tokenize(**turns(2, 2, 1)), str)


def test_a_tokenizer_that_fails_on_a_text_drops_the_row():
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["p0", "c0", "r0"])}))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    for preset in ("trl", "paper"):
        pairs = PairTokenizer(tokenizer, Tokens(preset=preset))
        assert pairs.tokenize(**turns(1, 2, 1)) == "tokenizer_error"
        assert not isinstance(pairs.tokenize(**turns(1, 1, 1)), str)


def test_tools_reach_the_template_and_broken_ones_drop_the_row():
    tokenizer = word_tokenizer("{% if tools %}{{ tools[0]['name'] }} {% endif %}" + PROMPTED)
    pairs = PairTokenizer(tokenizer, Tokens())
    with_tools = pairs.tokenize(**turns(2, 3, 3), tools=json.dumps([{"name": "p9"}]))
    assert text(tokenizer, with_tools.chosen_ids).startswith("p9 <s>")
    assert pairs.tokenize(**turns(2, 3, 3), tools="{") == "template_error"


def test_a_missing_template_is_an_error_and_a_file_supplies_one(tmp_path):
    with pytest.raises(ModelError, match=r"tokens\.chat_template"):
        PairTokenizer(word_tokenizer(None), Tokens())
    (tmp_path / "template.jinja").write_text(PROMPTED)
    pair = PairTokenizer(word_tokenizer(None), Tokens(chat_template=str(tmp_path / "template.jinja"))).tokenize(
        **turns(2, 3, 1)
    )
    assert pair.num_tokens_chosen == 4


def test_dialogues_are_whole_without_a_generation_prompt_and_with_one_bos():
    tokenizer = word_tokenizer()
    dialogues = DialogueTokenizer(tokenizer, max_length=100).tokenize(**turns(2, 3, 1))
    assert text(tokenizer, dialogues.chosen_ids) == "<s> [user] p0 p1 </s> [assistant] c0 c1 c2 </s>"
    assert not dialogues.truncated


@pytest.mark.parametrize(("side", "first", "last"), [("right", "<s>", "c1"), ("left", "p1", "</s>")])
def test_dialogues_are_cut_on_the_tokenizers_own_side(side, first, last):
    tokenizer = word_tokenizer()
    tokenizer.truncation_side = side
    dialogues = DialogueTokenizer(tokenizer, max_length=8 if side == "right" else 7).tokenize(**turns(2, 3, 1))
    shown = text(tokenizer, dialogues.chosen_ids).split()
    assert (shown[0], shown[-1]) == (first, last)
    assert dialogues.truncated


def test_a_byte_level_tokenizer_adds_no_second_bos():
    tokenizer = tiny_tokenizer()
    pair = PairTokenizer(tokenizer, Tokens()).tokenize(**turns(2, 3, 1))
    assert tokenizer.decode(pair.chosen_ids).startswith("<|im_start|>user\n")


@pytest.mark.parametrize("preset", ["trl", "paper"])
def test_a_template_that_prints_the_date_is_told_the_configs(preset):
    tokenizer = word_tokenizer("p{{ strftime_now('%d') | int }} " + PROMPTED)
    pairs = [
        PairTokenizer(tokenizer, Tokens(preset=preset, date=day)).tokenize(**turns(3, 4, 5))
        for day in (datetime.date(2025, 1, 1), datetime.date(2025, 1, 1), datetime.date(2024, 12, 31))
    ]
    first, again, other = (pair.chosen_ids.tolist() for pair in pairs)
    assert first == again
    assert first != other
    assert "p31" in tokenizer.decode(other)

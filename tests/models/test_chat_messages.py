"""Tool calls, reasoning, arguments of templates and long completions: tokens as those of TRL, on templates of its own.

TRL ships the templates of most families; those of SmolLM2 and Mistral, which it does not ship, are written here.
"""

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import trl

from pipeline.config import DEFAULT_DATE, Tokens
from pipeline.models.prompts import DialogueTokenizer, PairTokenizer, TokenizedPair
from pipeline.models.templates import ChatTemplate
from pipeline.sources.messages import MESSAGES
from tests.fixtures_models import CHATML, tiny_tokenizer
from tests.models.trl_reference import trl_tokens

pytestmark = pytest.mark.filterwarnings("ignore")

SHIPPED = Path(trl.__file__).parent / "chat_templates"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if tools and loop.index0 == 0 %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m['content'] }}[/INST]{% elif m['tool_calls'] is defined and m['tool_calls'] is not none %}"
    "[TOOL_CALLS] {% for call in m['tool_calls'] %}{{ call['function'] | tojson }}{% endfor %}{{ eos_token }}"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% elif m['role'] == 'tool' %}"
    "[TOOL_RESULTS] {{ m['content'] }} {{ m.get('tool_call_id', '') }}[/TOOL_RESULTS]{% else %}"
    "{{ raise_exception('Only user, assistant and tool roles are supported!') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "smollm2": CHATML,
    "mistral": MISTRAL,
    **{
        name: (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")
        for name in ("qwen3", "llama3", "llama3_2", "gemma", "deepseek_r1_distill")
    },
}


def said(role, content, **fields):
    return {"role": role, "content": content, **fields}


def calls(arguments):
    return [{"type": "function", "function": {"name": "look_up", "arguments": arguments}}]


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
QUESTION = [said("user", "What is the weather?")]
ROWS = {
    "plain": (QUESTION, [said("assistant", "The weather.")], [said("assistant", "A dog.")], None, {}),
    "system": (
        [said("system", "Be brief."), *QUESTION],
        [said("assistant", "Fox.")],
        [said("assistant", "No")],
        None,
        {},
    ),
    "call": (
        QUESTION,
        [said("assistant", "", tool_calls=calls({"q": "a fox"}))],
        [said("assistant", "No.")],
        TOOLS,
        {},
    ),
    "call_without_content": (
        QUESTION,
        [said("assistant", None, tool_calls=calls('{"q": "a fox"}'))],
        [said("assistant", "I do not know.")],
        TOOLS,
        {},
    ),
    "result_in_prompt": (
        [
            *QUESTION,
            said("assistant", "", tool_calls=calls({"q": 1})),
            said("tool", "7", name="look_up", tool_call_id="c1"),
        ],
        [said("assistant", "Seven.")],
        [said("assistant", "Eight.")],
        TOOLS,
        {},
    ),
    "result_in_answer": (
        QUESTION,
        [said("assistant", "", tool_calls=calls({"q": 1})), said("tool", "7"), said("assistant", "Seven.")],
        [said("assistant", "Eight.")],
        TOOLS,
        {},
    ),
    "reasoning": (
        QUESTION,
        [said("assistant", "A fox.", reasoning_content="The user asks.")],
        [said("assistant", "A dog.", reasoning_content="The")],
        None,
        {},
    ),
    "thoughts_in_text": (
        QUESTION,
        [said("assistant", "<think>\nThe user asks.\n</think>\n\nA fox.")],
        [said("assistant", "<think>\nNo.\n</think>\n\nA dog.")],
        None,
        {},
    ),
    "kwargs": (QUESTION, [said("assistant", "A fox.")], [said("assistant", "No.")], None, {"enable_thinking": False}),
    "several_turns": (
        QUESTION,
        [said("assistant", "A fox."), said("user", "Are you sure?"), said("assistant", "The answer is yes.")],
        [said("assistant", "A dog."), said("user", "Are you sure?"), said("assistant", "No.")],
        None,
        {},
    ),
}


def as_row(prompt, chosen, rejected, tools, kwargs):
    tools = None if tools is None else json.dumps(tools)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tools": tools, "chat_template_kwargs": kwargs}


def tokenized(tokenizer, row, **tokens):
    pair = MESSAGES.convert(row)
    turns = (pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.template_kwargs)
    return PairTokenizer(tokenizer, Tokens(**tokens)).tokenize(*turns)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_of_every_kind_of_message_equal_those_of_trl(name, tmp_path):
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    render = tokenizer.apply_chat_template  # TRL cannot set the date that templates print
    tokenizer.apply_chat_template = partial(render, strftime_now=DEFAULT_DATE.strftime)
    ours = {kind: tokenized(tokenizer, as_row(*row)) for kind, row in ROWS.items()}
    kept = {kind: pair for kind, pair in ours.items() if isinstance(pair, TokenizedPair)}
    assert {"plain", "kwargs", "several_turns"} <= kept.keys()
    theirs = trl_tokens(tokenizer, [as_row(*ROWS[kind]) for kind in kept], tmp_path, max_length=2048)
    for (kind, pair), row in zip(kept.items(), theirs, strict=True):
        assert pair.chosen_ids.tolist() == row["prompt_ids"] + row["chosen_ids"], kind
        assert pair.rejected_ids.tolist() == row["prompt_ids"] + row["rejected_ids"], kind
        assert [pair.num_tokens_chosen, pair.num_tokens_rejected] == [len(row["chosen_ids"]), len(row["rejected_ids"])]
    for kind in ours.keys() - kept.keys():
        assert ours[kind] == "template_error"
        with pytest.raises(Exception, match=r".+"):
            trl_tokens(tokenizer, [as_row(*ROWS[kind])], tmp_path, max_length=2048)


def test_templates_are_given_what_a_message_holds_and_nothing_else():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m | tojson }}{% endfor %}")
    pair = tokenized(tokenizer, as_row(*ROWS["result_in_prompt"]))
    shown = tokenizer.decode(pair.chosen_ids)
    assert '"tool_calls": [{"type": "function", "function": {"name": "look_up", "arguments": {"q": 1}}}]' in shown
    assert '{"role": "tool", "content": "7", "tool_call_id": "c1", "name": "look_up"}' in shown
    assert "null" not in shown


def test_arguments_of_the_config_reach_the_template_and_those_of_a_row_go_before_them():
    tokenizer = tiny_tokenizer("{{ mode }} {{ more }} " + CHATML)
    row = as_row(*ROWS["plain"])
    config = {"template_kwargs": {"mode": "config", "more": "config"}}
    assert tokenizer.decode(tokenized(tokenizer, row, **config).chosen_ids).startswith("config config ")
    row["chat_template_kwargs"] = {"mode": "row"}
    for preset in ("trl", "paper"):
        pair = tokenized(tokenizer, row, preset=preset, **config)
        assert "row config " in tokenizer.decode(pair.chosen_ids)


def test_text_that_is_templated_already_is_taken_as_it_is(caplog):
    tokenizer = tiny_tokenizer()
    prompt = [said("user", "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n")]
    row = as_row(prompt, [said("assistant", "A fox.<|im_end|>\n")], [said("assistant", "No.<|im_end|>\n")], None, {})
    clean = tokenized(
        tokenizer,
        as_row([said("user", "What is it?")], [said("assistant", "A fox.")], [said("assistant", "No.")], None, {}),
    )
    pair = tokenized(tokenizer, row, template="none")
    assert pair.chosen_ids.tolist() == clean.chosen_ids.tolist()
    assert [pair.chosen_start, pair.num_tokens_rejected] == [clean.chosen_start, clean.num_tokens_rejected]
    assert tokenized(tokenizer, as_row(*ROWS["system"]), template="none") == "several_turns"
    dialogues = DialogueTokenizer(tokenizer, 100, is_templated=False).tokenize(
        *(row[s] for s in ("prompt", "chosen", "rejected"))
    )
    assert dialogues.chosen_ids.tolist() == clean.chosen_ids.tolist()
    for template, is_told in (("chat", True), ("none", False)):
        caplog.clear()
        engine = PairTokenizer(tokenizer, Tokens(template=template))
        for _ in range(3):
            engine.tokenize(row["prompt"], row["chosen"], row["rejected"])
            engine.tell()
        assert [("tokens.template: none" in text) for text in caplog.messages] == [True] * is_told


@pytest.mark.parametrize(
    ("name", "kind", "lost"),
    [
        ("deepseek_r1_distill", "thoughts_in_text", "content in 1, such as r7"),
        ("llama3", "reasoning", "reasoning_content in 1"),
        ("smollm2", "call", "tool_calls in 1, such as r7; tools in 1"),
        ("qwen3", "thoughts_in_text", None),
        ("qwen3", "reasoning", None),
        ("gemma", "several_turns", None),
    ],
)
def test_what_a_template_leaves_out_of_answers_is_told_once(name, kind, lost, caplog):
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    pair, engine = MESSAGES.convert(as_row(*ROWS[kind])), PairTokenizer(tokenizer, Tokens())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            engine.tokenize(pair.prompt, pair.chosen, pair.rejected, pair.tools, row="r7")
            engine.tell()
            engine.tell()
    assert len(caplog.messages) == (lost is not None)
    assert lost is None or lost in caplog.text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise_exception('No such role, sorry')", "No such role, sorry"),
        ("raise_exception('No such role: ' + messages[0]['content'])", "No such role: ..."),
        ("raise_exception(messages[0]['content'])", ""),
        ("1 // 0", ""),
    ],
)
def test_a_template_that_refuses_is_quoted_and_a_row_is_not(code, words):
    template = ChatTemplate(tiny_tokenizer("{{ " + code + " }}"), None)
    assert template.refusal([[said("user", "a secret of the row")]]) == words


def test_answers_that_differ_only_in_what_the_template_leaves_out_have_a_reason_of_their_own():
    tokenizer = tiny_tokenizer(TEMPLATES["deepseek_r1_distill"])
    answers = ([said("assistant", f"<think>\n{thought}\n</think>\n\nA fox.")] for thought in ("Yes.", "No."))
    row = as_row(QUESTION, *answers, None, {})
    assert tokenized(tokenizer, row) == "identical_in_template"
    dialogues = DialogueTokenizer(tokenizer, 100)
    assert dialogues.tokenize(*(row[side] for side in ("prompt", "chosen", "rejected"))) == "identical_in_template"

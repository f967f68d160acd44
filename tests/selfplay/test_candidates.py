"""Prompts to candidates: every prompt answered K times or dropped with its reason, whatever shard it is in."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Generate, SelfPlayConfig, Tokens, TorchModel
from pipeline.errors import ModelError
from pipeline.schema import CANDIDATE_SCHEMA, PROMPT, RESPONSES
from pipeline.selfplay.candidates import GenerateCandidates, PromptRenderer, evaluation, generate_stage
from pipeline.selfplay.sampler import Response
from pipeline.selfplay.transformers_sampler import TransformersSampler
from tests.fixtures_models import CHATML, tiny_tokenizer
from tests.selfplay.tables import PROMPTS, messages, prompt_table

GENERATE = Generate(
    engine="transformers", num_responses=3, temperature=1.5, top_p=1.0, max_tokens=6, max_prompt_tokens=60
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m['content'] }}<|im_end|>{% endfor %}"
)
SILENT = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"


class Saying:
    """A sampler that gives the same texts to every prompt."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.seen, self.closed = texts, [], False

    def sample(self, requests, sampling):
        self.seen += requests
        return [[Response(text=t, num_tokens=2, finish_reason="stop") for t in self.texts] for _ in requests]

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def policy(tiny_model_dir) -> TorchModel:
    return TorchModel(model=str(tiny_model_dir("llama")), dtype="float32")


@pytest.fixture(scope="module")
def stage(policy) -> GenerateCandidates:
    return GenerateCandidates(TransformersSampler(policy, GENERATE), renderer(), GENERATE)


def renderer(template: str = CHATML, system_prompt: str | None = None) -> PromptRenderer:
    return PromptRenderer(tiny_tokenizer(template), Tokens(), GENERATE.max_prompt_tokens, system_prompt)


def test_every_prompt_has_k_responses_in_its_row(stage):
    table = prompt_table()
    found = stage(table)
    assert found.schema == CANDIDATE_SCHEMA
    assert found.select(table.column_names).equals(table)
    for row in found.to_pylist():
        lists = [row["all_generated_responses"], row["finish_reasons"], row["num_tokens_responses"]]
        assert [len(values) for values in lists] == [3, 3, 3]
        assert set(row["finish_reasons"]) <= {"stop", "length"}
        assert all(1 <= n <= 6 for n in row["num_tokens_responses"])
        assert 0 < row["num_tokens_prompt"] <= 60


@settings(max_examples=10)
@given(st.permutations(range(len(PROMPTS))), st.integers(1, len(PROMPTS)))
def test_responses_do_not_depend_on_the_shard(stage, order, size):
    whole = stage(prompt_table()).to_pylist()
    shuffled = prompt_table().take(pa.array(order))
    shards = [shuffled.slice(begin, size) for begin in range(0, len(order), size)]
    parts = [row for shard in shards for row in stage(shard).to_pylist()]
    assert sorted(parts, key=lambda row: row["id"]) == whole


def test_prompts_that_cannot_be_used_are_dropped_with_their_reason():
    long = "word " * 100
    refused = [{"role": "system", "content": "Be kind."}, *messages("Why?")]
    found = GenerateCandidates(Saying("yes"), renderer(NO_SYSTEM), GENERATE)(
        prompt_table(["Why?", long, refused, "What?"])
    )
    found = found.to_pylist()
    reasons = [(row["status"], row["drop_stage"], row["drop_reason"]) for row in found]
    assert reasons == [
        ("kept", None, None),
        ("dropped", "generate", "prompt_too_long"),
        ("dropped", "generate", "template_error"),
        ("kept", None, None),
    ]
    assert [row["all_generated_responses"] is None for row in found] == [False, True, True, False]


def test_rows_dropped_before_stay_as_they_are(stage):
    before = stage(prompt_table(["word " * 100, "Why?"]))
    again = stage(before.select(prompt_table().column_names))
    assert again.to_pylist() == before.to_pylist()


def test_empty_answers_are_kept_and_a_row_of_them_is_dropped():
    mixed = GenerateCandidates(Saying("yes", " \n", ""), renderer(), GENERATE)(prompt_table(["Why?"])).to_pylist()[0]
    assert mixed["all_generated_responses"] == ["yes", "", ""]
    assert mixed["status"] == "kept"
    empty = GenerateCandidates(Saying("", "\n"), renderer(), GENERATE)(prompt_table(["Why?"])).to_pylist()[0]
    assert (empty["drop_stage"], empty["drop_reason"]) == ("generate", "empty_responses")
    assert empty["all_generated_responses"] == ["", ""]
    assert empty["num_tokens_responses"] == [2, 2]


def test_prompts_are_rendered_by_the_template_up_to_the_answer():
    sampler = Saying("yes")
    GenerateCandidates(sampler, renderer(), GENERATE)(prompt_table(["Why?"]))
    text = tiny_tokenizer().decode(sampler.seen[0].prompt_ids)
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_the_system_prompt_is_put_before_prompts_that_have_none():
    own = [{"role": "system", "content": "Be kind."}, *messages("Why?")]
    sampler = Saying("yes")
    found = GenerateCandidates(sampler, renderer(system_prompt="Be brief."), GENERATE)(prompt_table(["Why?", own]))
    assert found.column(PROMPT).to_pylist() == [[{"role": "system", "content": "Be brief."}, *messages("Why?")], own]
    assert "Be brief." in tiny_tokenizer().decode(sampler.seen[0].prompt_ids)


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT])
def test_a_template_without_a_system_turn_refuses_a_system_prompt(template):
    with pytest.raises(ModelError, match="no place for a system turn"):
        renderer(template, "Be brief.")
    assert not isinstance(renderer(template).token_ids(messages("Why?")), str)


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ModelError, match="no chat template"):
        PromptRenderer(tiny_tokenizer(None), Tokens(), 60)


def test_seeds_are_of_the_id_and_the_config():
    def seeds(first: int, seed: int) -> list[int]:
        sampler = Saying("yes")
        generate = GENERATE.model_copy(update={"seed": seed})
        GenerateCandidates(sampler, renderer(), generate)(prompt_table(["Why?"] * 3, first=first))
        return [request.seed for request in sampler.seen]

    assert len({*seeds(0, 42), *seeds(3, 42), *seeds(0, 43)}) == 9
    assert seeds(0, 42)[1:] == seeds(1, 42)[:2]
    assert all(0 <= seed < 2**63 for seed in seeds(0, 42))


def test_closing_the_stage_closes_the_engine():
    sampler = Saying("yes")
    GenerateCandidates(sampler, renderer(), GENERATE).close()
    assert sampler.closed


@pytest.fixture
def config(tmp_path, policy, tiny_model_dir) -> SelfPlayConfig:
    reward = {"backend": "classifier", "model": str(tiny_model_dir("llama", classifier=True, seed=3))}
    return SelfPlayConfig(
        path=str(tmp_path / "play"), prompts={"path": str(tmp_path)}, policy=policy, reward=reward, generate=GENERATE
    )


def test_the_stage_of_a_config_is_the_stage(config, policy, stage):
    described = generate_stage(config, policy)
    assert (described.name, described.model, described.env) == ("generate", GENERATE, {})
    assert described.build()(prompt_table()).equals(stage(prompt_table()))


def test_prompts_longer_than_the_model_are_dropped_whatever_the_config_allows(config, policy):
    wide = GENERATE.model_copy(update={"max_prompt_tokens": 100_000})
    built = generate_stage(config, policy, wide).build()
    assert built(prompt_table(["word " * 2000])).column("drop_reason").to_pylist() == ["prompt_too_long"]


def test_evaluation_samples_as_its_section_says(config):
    found = evaluation(config)
    assert (found.num_responses, found.seed, found.max_tokens) == (1, 7, GENERATE.max_tokens)
    assert found.max_prompt_tokens == GENERATE.max_prompt_tokens
    assert RESPONSES in CANDIDATE_SCHEMA.names

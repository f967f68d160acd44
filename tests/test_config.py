"""What a config accepts, and what it says about what it does not."""

from pathlib import Path

import pytest

from pipeline.config import resolved
from pipeline.config_file import load_config, load_self_play, parse_config, parse_self_play
from pipeline.demo.self_play import self_play_demo_config
from pipeline.errors import ConfigError
from pipeline.storage.runs import differences

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml"))

GOOD = {
    "source": {"path": "pairs.jsonl"},
    "policy": {"model": "m"},
    "reward": {"backend": "columns"},
    "scored": "scored",
    "select": {"fraction": 0.4},
    "output": {"path": "subset"},
}
VLLM = {"backend": "vllm", "model": "m"}


def changed(**sections):
    return {**GOOD, **sections}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_vetted_config_parses(path: Path):
    load = load_self_play if path.stem.endswith("self_play") else load_config
    assert load(path).policy is not None


MODELS_SIZES_AND_RESOURCES = {
    "path", "prompts.path", "prompts.format", "prompts.id_column", "policy", "reward", "train.policies",
    "tokens.max_length", "tokens.max_prompt_length", "objective.beta", "select.fraction",
    "generate.num_responses", "generate.max_tokens", "generate.num_gpus", "generate.num_cpus", "generate.num_threads",
    "generate.replicas", "generate.shard_prompts", "evolve.per_prompt", "evolve.max_tokens",
    "train.learning_rate", "train.gamma", "train.epochs", "train.batch_size", "train.accumulate", "train.adapter",
    "train.rank", "train.num_gpus", "train.num_threads", "train.dtype",
    "evaluate.num_prompts", "evaluate.num_responses", "run.shard_rows", "run.max_dropped",
}  # fmt: skip


def test_the_demos_self_play_is_the_papers_but_for_models_sizes_and_resources(tmp_path: Path):
    paper = load_self_play(Path(__file__).parents[1] / "jobs" / "configs" / "paper_self_play.yaml")
    demo = parse_self_play(self_play_demo_config(tmp_path, tmp_path / "policy", tmp_path / "reward"))
    differing = {name for name, _, _ in differences(paper.model_dump(mode="json"), demo.model_dump(mode="json"))}
    unexpected = {name for name in differing if not {name, name.split(".")[0]} & MODELS_SIZES_AND_RESOURCES}
    assert unexpected == set()


def test_vetted_configs_are_there():
    assert CONFIGS


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (changed(metric={"wieght": 1}), ["metric.wieght", "did you mean weight?"]),
        (changed(polcy={}), ["polcy", "did you mean policy?"]),
        (changed(policy={"model": "m", "dtyp": "x"}), ["policy.dtyp", "did you mean dtype?"]),
        (changed(reward={"backend": "classifier"}), ["reward.model", "required"]),
        (changed(policy={"backend": "vlm", "model": "m"}), ["policy", "torch", "columns"]),
        (changed(select={"fraction": 0}), ["select.fraction", "got 0"]),
        (changed(select={"fraction": 1.5}), ["select.fraction", "got 1.5"]),
        (changed(select={"fraction": 0.4, "k": 10}), ["select", "exactly one of fraction and k"]),
        (changed(metric={"weight": -1}), ["metric.weight", "got -1"]),
        (changed(metric={"weight": float("nan")}), ["metric.weight"]),
        (changed(objective={"name": "dpo"}), ["objective dpo", "add a reference section"]),
        (changed(objective={"name": "dpop"}), ["objective dpop", "add a reference section"]),
        (changed(objective={"name": "simpo", "alpha": 0.1}), ["objective: simpo does not use alpha; leave it out"]),
        (changed(objective={"name": "orpo", "beta": 0.1}), ["orpo does not use beta", "orpo takes no parameter"]),
        (changed(objective={"name": "r-dpo", "alpha": -0.1}), ["alpha of r-dpo", "set length_sign: -1 instead"]),
        (changed(objective={"name": "simop"}), ["objective.name", "simpo", "got 'simop'"]),
        (changed(objective={"btea": None}), ["objective.btea", "did you mean beta?"]),
        (changed(policy=None), ["metric potential", "add a policy section"]),
        (changed(reward=None), ["metric potential", "add a reward section"]),
        (changed(scored="subset/"), ["must differ"]),
        (changed(source={"path": "https://host/pairs.jsonl"}), ["source.path", "object-store URL"]),
        (changed(tokens={"preset": "paper", "max_length": 1000}), ["max_prompt_length", "below max_length"]),
        (changed(tokens={"chat_template": "no-such-file.jinja"}), ["tokens.chat_template", "cannot be read"]),
        ({"source": {"path": "x"}}, ["scored", "required"]),
        (changed(source={"path": "d"}, scored="d/scored"), ["scored", "lies inside source.path"]),
        (changed(output={"path": "d/../scored"}), ["must differ"]),
        (changed(output={"path": "subset", "formats": []}), ["output.formats"]),
        (changed(output={"path": "subset", "formats": ["hf", "hf"]}), ["output.formats", "twice"]),
        (changed(policy={"backend": "columns"}, reference={"model": "m"}), ["policy.backend columns", "both"]),
        (
            changed(reward={"backend": "classifier", "model": "m"}, metric={"explicit": "candidates"}),
            ["candidates", "reward.backend classifier"],
        ),
        (changed(policy={"model": "m", "num_gpus": -1}), ["policy.num_gpus"]),
        (changed(storage={"endpoint_url": "http://key:canary@host"}), ["storage.endpoint_url", "credentials"]),
        (
            changed(reward={"model": "m"}),
            ["reward.model: not used with backend columns; set reward.backend: classifier"],
        ),
        (
            changed(policy={"backend": "columns", "adapter": "a"}),
            ["policy.adapter: not used with backend columns; set policy.backend: torch"],
        ),
        (
            changed(policy={"model": "m", "engine_args": {}}),
            ["policy.engine_args: not used with backend torch; set", "vllm"],
        ),
        (changed(policy={"model": "m", "engine_arg": {}}), ["did you mean engine_args, with backend: vllm?"]),
        (changed(policy={**VLLM, "engine_arg": {}}), ["policy.engine_arg: unknown key; did you mean engine_args?"]),
        (changed(policy={"backend": "columns", "engine_args": {}}), ["not used with backend columns", "backend: vllm"]),
        (changed(policy={**VLLM, "adapter": "a"}), ["policy.adapter: backend vllm scores no adapters; merge"]),
        (changed(policy={**VLLM, "fp8": True}), ["policy.fp8: backend vllm has its own: set engine_args"]),
        (changed(policy={"model": "m", "fp8": True}, reference={"model": "m"}), ["fp8 of one of policy and reference"]),
        (changed(policy={**VLLM, "engine_args": {"dtype": "float16"}}), ["policy.engine_args: dtype cannot be given"]),
        (changed(policy={**VLLM, "engine_args": {"tensor_parallel_size": "2"}}), ["whole numbers of at least 1"]),
        (changed(policy={**VLLM, "engine_args": {"tensor_parallel_size": 4}}), ["num_gpus: auto", "set num_gpus: 4"]),
        (changed(policy={**VLLM, "num_gpus": 2}), ["num_gpus: 2.0 does not fit", "tensor_parallel_size"]),
        (changed(policy={**VLLM, "backend": "vlm"}), ["policy.backend: 'vlm' is unknown; wanted torch or vllm or col"]),
        (changed(reward={"backend": "classifer"}), ["reward.backend: 'classifer' is unknown; wanted columns or class"]),
        (changed(metric="explicit"), ["metric: wanted a section such as {name: ...} (got 'explicit')"]),
        (changed(policy="m"), ["policy: wanted a section such as {model: ...} (got 'm')"]),
        (changed(source={"path": "x", "passthrough": "foo"}), ["source.passthrough: wanted a list, such as [foo]"]),
        (changed(metric={"name": "potental"}), ["metric.name", "potential", "got 'potental'"]),
        (changed(metric={"weight": "automatic"}), ["metric.weight: wanted auto or a number of at least 0"]),
        (changed(metric={"weight": float("inf")}), ["metric.weight"]),
        (changed(metric={"weight": "auto", "normalise": "rank"}), ["weight: auto", "ranks", "another normalise"]),
        (changed(metric={"ratio": 2.0}), ["metric.ratio", "whitening", "got 2.0"]),
        (changed(metric={"ratoi": "std"}), ["metric.ratoi", "did you mean ratio?"]),
        (changed(metric={"normalise": "ranks"}), ["metric.normalise", "zscore", "got 'ranks'"]),
        (changed(metric={"order": "highest"}), ["metric.order", "'smallest' or 'largest'"]),
        (changed(metric={"name": "difficulty"}), ["metric difficulty", "set objective.name: dpo"]),
        (changed(metric={"name": "bees-add"}, reward=None), ["metric bees-add", "add a reward section"]),
        (changed(metric={"name": "sigma-gap"}, policy=None), ["metric sigma-gap", "add a policy section"]),
        (changed(select={}), ["select", "fraction and k", "min_score"]),
        (changed(select={"k": 0}), ["select.k", "got 0"]),
        (changed(select={"k": 1.5}), ["select.k", "got 1.5"]),
        (changed(select={"fraction": -0.1}), ["select.fraction", "got -0.1"]),
        (changed(select={"fraction": float("nan")}), ["select.fraction"]),
        (changed(select={"min_score": float("inf")}), ["select.min_score"]),
        (changed(select={"min_score": 2.0, "max_score": 1.0}), ["min_score 2.0 is above max_score 1.0"]),
        (changed(select={"fraction": 0.4, "labels": "flip"}), ["select.labels", "swap", "got 'flip'"]),
        (
            changed(select={"fraction": 0.4, "labels": "swap"}, metric={"name": "implicit"}, reward=None),
            ["select.labels swap reads the rewards", "add a reward section"],
        ),
        (changed(select={"fraction": 0.4, "per_prompt": 0}), ["select.per_prompt", "got 0"]),
        (changed(select={"fraction": 0.4, "deduplicate": "fuzzy"}), ["select.deduplicate", "near", "got 'fuzzy'"]),
        (changed(select={"fraction": 0.4, "deduplicate": "near", "similarity": 0}), ["select.similarity", "got 0"]),
        (changed(select={"fraction": 0.4, "quotas": "equal"}), ["quotas needs group_by"]),
        (changed(select={"fraction": 0.4, "group_by": "g", "quotas": {}}), ["quotas names no group"]),
        (
            changed(select={"fraction": 0.4, "group_by": "g", "quotas": {"a": 0}}),
            ["select.quotas: wanted proportional"],
        ),
        (
            changed(select={"fraction": 0.4, "group_by": "g", "quotas": {"a": -1}}),
            ["select.quotas: wanted proportional"],
        ),
        (changed(select={"fraction": 0.4, "group_by": "g", "quotas": "even"}), ["select.quotas: wanted proportional"]),
        (
            changed(select={"min_score": 0.5, "group_by": "g"}),
            ["group_by shares out a number of rows", "fraction or k"],
        ),
        (changed(select={"stats_from": "s.json", "fraction": 0.4, "k": 10}), ["exactly one of fraction and k"]),
        (changed(select={"fraction": 0.4, "engine": "spark"}), ["select.engine", "got 'spark'"]),
        (changed(preset="papers"), ["preset", "'paper' or 'paper-selfplay'", "got 'papers'"]),
        (changed(preset="paper", metric={"wieght": 1}), ["metric.wieght", "did you mean weight?"]),
        (changed(preset="paper", reward={"backend": "classifier", "model": "m"}), ["candidates", "classifier"]),
        (changed(preset="paper", metric="explicit"), ["metric: wanted a section"]),
        (changed(preset="paper", select={"fraction": 0.4, "k": 10}), ["exactly one of fraction and k"]),
    ],
)
def test_bad_config_names_key_and_remedy(config: dict, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        parse_config(config)
    for part in parts:
        assert part in str(error.value)


def test_number_of_gpus_is_told_in_one_line():
    with pytest.raises(ConfigError) as error:
        parse_config(changed(policy={"model": "m", "num_gpus": "x"}))
    assert str(error.value).splitlines()[1:] == ["  policy.num_gpus: wanted auto or a number of at least 0 (got 'x')"]


def test_rule_across_sections_stands_alone():
    with pytest.raises(ConfigError) as error:
        parse_config(changed(reward=None))
    assert str(error.value).splitlines()[1].startswith("  metric potential reads")


@pytest.mark.parametrize(
    "sections",
    [
        {"scored": "s3://user:canary-secret@bucket/x"},
        {"source": "s3://user:canary-secret@bucket/x"},
        {"storage": {"endpoint_url": "canary-secret@host"}},
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(sections):
    with pytest.raises(ConfigError, match=r"must not carry credentials|wanted a section") as error:
        parse_config(changed(**sections))
    assert "canary" not in str(error.value)


def test_resolved_objective_shows_what_is_used_and_nothing_else():
    assert resolved(parse_config(GOOD))["objective"] == {"name": "simpo", "beta": 2.0}
    rule = {"name": "r-dpo", "alpha": 0.2, "beta": None}
    config = parse_config(changed(objective=rule, reference={"model": "r"}))
    assert resolved(config)["objective"] == {"name": "r-dpo", "beta": 0.1, "alpha": 0.2, "length_sign": 1}
    assert parse_config(resolved(config)) == config


def test_override_wins_over_the_file(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("source: {path: pairs.jsonl}\npolicy: {model: m}\nreward: {}\nscored: s\n")
    config = load_config(path, ["objective.beta=2.5", "run.shard_rows=7", "source.passthrough=[a, b]"])
    assert (config.objective.beta, config.run.shard_rows) == (2.5, 7)
    assert config.source is not None
    assert config.source.passthrough == ("a", "b")


@pytest.mark.parametrize("override", ["objective.beta", "=1", "objective..beta=1", "scored.x=1", "objective.beta=[1"])
def test_malformed_override_is_refused(tmp_path: Path, override: str):
    path = tmp_path / "config.yaml"
    path.write_text("scored: s\n")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- canary\n", "holds a list; wanted a mapping of sections."),
        ("", "is empty"),
        ("a: 1\nb: canary: c\n", "is not YAML at line 2, column 10."),
        ("a: !canary x", "is not YAML at line 1, column 4."),
        ("a: 2024-13-45", "is not YAML (ValueError)"),
        ("a: canary\x00", "is not YAML (ReaderError)"),
    ],
)
def test_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str, said: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)
    assert "canary" not in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_named_once(tmp_path: Path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"config {path} cannot be read: No such file or directory. Give the path of a YAML file."


@pytest.mark.parametrize(
    ("num_gpus", "engine_args"),
    [
        ("auto", {}),
        (0.5, {}),
        (0, {"tensor_parallel_size": 2}),
        (4, {"tensor_parallel_size": 4, "max_num_seqs": 8}),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    ],
)
def test_vllm_gets_a_gpu_for_each_part_of_the_model(num_gpus, engine_args):
    config = parse_config(changed(policy={**VLLM, "num_gpus": num_gpus, "engine_args": engine_args}))
    assert parse_config(resolved(config)) == config
    assert config.torch_models()["policy"].num_gpus == num_gpus
    assert config.policy.token_budget == 2048


def test_backend_may_be_left_out():
    config = parse_config(changed(reward={}))
    assert (config.policy.backend, config.reward.backend) == ("torch", "columns")


def test_chat_template_is_read_where_the_config_is(tmp_path: Path):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    assert parse_config(changed(tokens={"chat_template": str(template)})).tokens.chat_template == "{{ messages }}"


ALONE = {"scored": "scored", "output": {"path": "subset"}}


@pytest.mark.parametrize(("preset", "weight", "fraction"), [("paper", 1.0, 0.4), ("paper-selfplay", 2.5, 0.25)])
def test_preset_is_what_the_authors_set(preset, weight, fraction):
    config = parse_config({**ALONE, "preset": preset})
    assert config.metric.model_dump(exclude={"ratio", "order"}) == {
        "name": "potential", "weight": weight, "normalise": "zscore", "explicit": "candidates", "implicit": "absolute",
    }  # fmt: skip
    assert (config.select.fraction, config.select.seed) == (fraction, 42)
    assert config.objective.name == "simpo"
    assert (config.tokens.preset, config.tokens.max_length, config.tokens.max_prompt_length) == ("paper", 2048, 1800)


def test_what_the_config_says_goes_before_its_preset():
    sections = {"metric": {"explicit": "signed"}, "select": {"seed": 7}, "tokens": {"max_length": 2000}}
    config = parse_config({**ALONE, "preset": "paper", **sections})
    assert (config.metric.explicit, config.metric.weight) == ("signed", 1.0)
    assert (config.select.seed, config.select.fraction) == (7, 0.4)
    assert (config.tokens.max_length, config.tokens.preset) == (2000, "paper")


def test_a_number_takes_the_place_of_the_fraction_of_a_preset():
    select = parse_config({**ALONE, "preset": "paper", "select": {"k": 10}}).select
    assert (select.fraction, select.k, select.seed) == (None, 10, 42)


@pytest.mark.parametrize("bound", ["min_score", "max_score"])
def test_a_score_bound_leaves_the_fraction_of_a_preset(bound):
    assert parse_config({**ALONE, "preset": "paper", "select": {bound: 0.5}}).select.fraction == 0.4


def test_a_former_selection_takes_the_place_of_the_whole_rule_of_a_preset():
    select = parse_config({**ALONE, "preset": "paper", "select": {"stats_from": "s.json"}}).select
    assert select.model_fields_set == {"stats_from"}


def test_groups_of_numbers_may_have_quotas():
    given = {"k": 3, "group_by": "kind", "quotas": {1: 2, 2: 1}}
    assert parse_config({**ALONE, "select": given}).select.quotas == {"1": 2.0, "2": 1.0}


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_bradley_terry_without_contradicted_labels_is_refused(labels):
    with pytest.raises(ConfigError, match=r"bradley-terry .* select\.labels: keep"):
        parse_config({**ALONE, "metric": {"weight": "auto", "ratio": "bradley-terry"},
                      "select": {"k": 3, "labels": labels}})  # fmt: skip


def test_objective_of_the_config_takes_the_place_of_that_of_a_preset():
    config = parse_config({**ALONE, "preset": "paper", "objective": {"name": "dpo"}})
    assert resolved(config)["objective"] == {"name": "dpo", "beta": 2.0}


@pytest.mark.parametrize("preset", ["paper", "paper-selfplay"])
def test_resolved_preset_parses_to_itself(preset):
    config = parse_config({**ALONE, "preset": preset, "select": {"k": 10}})
    assert parse_config(resolved(config)) == config


def test_override_reaches_into_a_preset(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("preset: paper\nscored: s\noutput: {path: o}\n")
    assert load_config(path, ["metric.weight=0.5"]).metric.weight == 0.5
    assert load_config(path, ["preset=paper-selfplay"]).metric.weight == 2.5


def test_config_without_preset_has_no_paper_in_it():
    config = parse_config({**ALONE, "select": {"k": 1}})
    assert (config.preset, config.metric.explicit, config.tokens.preset) == (None, "signed", "trl")


@pytest.mark.parametrize(
    "select",
    [
        {"fraction": 1.0},
        {"min_score": 1.0, "max_score": 1.0},
        {"fraction": 0.5, "min_score": -1},
        {"k": 5, "group_by": "origin", "quotas": {"a": 1, "b": 0.5}},
        {"k": 5, "group_by": "origin", "quotas": "equal", "labels": "swap", "per_prompt": 1, "deduplicate": "near"},
        {"stats_from": "subset/_SUCCESS.json"},
        {"stats_from": "subset/_SUCCESS.json", "group_by": "origin", "fraction": 0.4, "labels": "drop"},
    ],
)
def test_select_section_is_accepted_and_resolves_to_itself(select):
    config = parse_config(changed(select=select))
    assert parse_config(resolved(config)) == config
    for name, value in select.items():
        assert getattr(config.select, name) == value


@pytest.mark.parametrize(
    ("metric", "explicit", "implicit", "candidates"),
    [
        ({"name": "potential"}, True, True, False),
        ({"name": "potential", "weight": 0}, True, False, False),
        ({"name": "potential", "weight": "auto"}, True, True, False),
        ({"name": "potential", "explicit": "candidates"}, True, True, True),
        ({"name": "explicit"}, True, False, False),
        ({"name": "implicit"}, False, True, False),
        ({"name": "random"}, False, False, False),
        ({"name": "bees-add", "explicit": "candidates"}, True, True, False),
        ({"name": "sigma-gap"}, True, True, False),
    ],
)
def test_metric_knows_which_margins_it_reads(metric, explicit, implicit, candidates):
    found = parse_config(changed(metric=metric)).metric
    assert (found.reads_explicit, found.reads_implicit, found.reads_candidates) == (explicit, implicit, candidates)


@pytest.mark.parametrize("metric", [{"normalise": "rank", "weight": 2.0}, {"weight": "auto", "ratio": "std"},
                                    {"name": "explicit", "weight": "auto", "normalise": "rank"}])  # fmt: skip
def test_metric_section_is_accepted_and_resolves_to_itself(metric):
    config = parse_config(changed(metric=metric))
    assert parse_config(resolved(config)) == config

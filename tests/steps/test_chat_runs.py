"""Runs on chats: a template that refuses rows speaks for itself, and tool calls are scored and kept."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.commands import run_all
from pipeline.config import Config, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SCORED, SUBSET
from pipeline.data.place import Place
from pipeline.errors import TooManyDroppedError
from pipeline.steps.dry_run import dry_run
from tests.models.test_chat_messages import MISTRAL, TOOLS, calls, said
from tests.sources import layouts as to


def config(folder: Path, model: Path, rows: list[dict], **changes) -> Config:
    (folder / "source").mkdir()
    to.write_jsonl(folder / "source" / "a.jsonl", rows)
    given = {
        "source": {"path": str(folder / "source"), "id_column": "key"},
        "reward": {"backend": "columns"},
        "policy": {"model": str(model), "dtype": "float32"},
        "objective": {"name": "simpo"},
        "tokens": {"chat_template": MISTRAL},
        "scored": str(folder / "scored"),
        "select": {"k": 2},
        "output": {"path": str(folder / "subset"), "slim": True},
        "run": {"engine": "plain", "max_dropped": 0.5},
    }
    return Config.model_validate({**given, **changes})


def pairs(num_rows: int) -> list[dict]:
    return [
        {"key": f"r{index}", **to.pair(prompt=f"Question {index}?"), "score_chosen": 2.0 + index, "score_rejected": 1.0}
        for index in range(num_rows)
    ]


def test_the_words_of_a_template_that_refuses_rows_stand_beside_their_count(tiny_model_dir, tmp_path: Path):
    rows = pairs(4)
    for row in rows[::2]:
        row["prompt"] = [said("system", "Be secret."), *row["prompt"]]
    settings = config(tmp_path, tiny_model_dir("llama"), rows)
    words = r'template_error ("Only user, assistant and tool roles are supported!")'
    assert 'refuses rows: "Only user, assistant and tool roles are supported!"' in "".join(
        dry_run(settings, select=True)
    )
    told = "\n".join(run_all(settings))
    assert any(line.strip().startswith(f"tokenise: {words}") and line.endswith(" 2") for line in told.splitlines())
    with pytest.raises(TooManyDroppedError, match="roles are supported!"):
        list(run_all(settings.model_copy(update={"run": settings.run.model_copy(update={"max_dropped": 0.1})})))


def test_tool_calls_are_scored_as_the_template_writes_them_and_stay_in_the_subset(tiny_model_dir, tmp_path: Path):
    rows, directory = pairs(3), tiny_model_dir("llama")
    for row in rows[1:]:
        row |= {"chosen": [said("assistant", None, tool_calls=calls({"q": "a fox"}))], "tools": TOOLS}
    rows[2]["chat_template_kwargs"] = {"mode": "short"}
    list(run_all(config(tmp_path, directory, rows)))
    found = Dataset.open(Place.open(str(tmp_path / "scored"), Storage()), SCORED).table().to_pylist()

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    render = {"tools": TOOLS, "chat_template": MISTRAL, "return_dict": False}
    prompt, whole = (
        tokenizer.apply_chat_template(turns, **render)
        for turns in (rows[1]["prompt"], rows[1]["prompt"] + rows[1]["chosen"])
    )
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    expected = sum(logp[at - 1, whole[at]].item() for at in range(len(prompt), len(whole)))
    assert found[1]["policy_logp_chosen"] == pytest.approx(expected, rel=1e-5)
    assert found[1]["num_tokens_chosen"] == len(whole) - len(prompt)

    subset = Dataset.open(Place.open(str(tmp_path / "subset"), Storage()), SUBSET).table()
    kept = subset["chosen"].to_pylist()
    assert any(turns[0]["tool_calls"] for turns in kept)
    assert {"tools", "chat_template_kwargs"} <= {*subset.column_names}

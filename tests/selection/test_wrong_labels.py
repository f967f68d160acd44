"""Likely wrong labels: planted ones are found, probabilities hold, and the list for people holds no text unasked."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import api, cli
from pipeline.config import Storage
from pipeline.errors import DataError
from pipeline.metrics import explicit_margin, implicit_margin
from tests.metrics.tables import scored_table
from tests.selection.sources import SIMPO, with_columns
from tests.steps import scored_data as data


def world(num_rows: int, share_flipped: float, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Pairs whose reward and policy see the better answer through noise of their own; and which labels are wrong."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random(num_rows) < share_flipped, -1.0, 1.0)
    quality = np.abs(rng.normal(1.5, 0.7, num_rows)) * sign
    tokens = np.full(num_rows, 100)
    logps = quality + rng.normal(0.0, 1.2, num_rows)
    table = scored_table(
        num_rows,
        reward_chosen=quality + rng.normal(0.0, 1.0, num_rows),
        reward_rejected=np.zeros(num_rows),
        policy_logp_chosen=100 * logps - 500,
        policy_logp_rejected=np.full(num_rows, -500.0),
        num_tokens_chosen=tokens,
        num_tokens_rejected=tokens,
    )
    return table, sign < 0


def test_planted_wrong_labels_come_first_and_their_probabilities_hold():
    table, wrong = world(20_000, 0.05)
    found = api.audit(table, above=0.0).to_arrow()
    assert found.num_rows == 20_000
    is_wrong = dict(zip(table.column("id").to_pylist(), wrong.tolist(), strict=True))
    flags = np.array([is_wrong[each] for each in found.column("id").to_pylist()])
    num = int(wrong.sum())
    by_reward = wrong[np.argsort(explicit_margin(table))][:num].mean()
    by_policy = wrong[np.argsort(implicit_margin(table, SIMPO))][:num].mean()
    precision = flags[:num].mean()
    assert precision > max(by_reward, by_policy) + 0.05 > 0.5
    probability = found.column("probability_wrong").to_numpy()
    assert (np.diff(probability) <= 0).all()
    assert probability.mean() == pytest.approx(wrong.mean(), abs=0.02)
    for low, high in ((0.0, 0.1), (0.3, 0.7), (0.8, 1.0)):
        inside = (probability >= low) & (probability <= high)
        assert flags[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.1)


def test_the_report_names_the_likeliest_pairs_whatever_the_order_of_the_rows():
    table, _ = world(1500, 0.05)
    listed = api.audit(table).to_arrow().to_pylist()
    for rows in (table, table.take(np.arange(1499, -1, -1))):
        found = api.select(rows, fraction=0.4).report["label_audit"]["likeliest"]
        assert [row["id"] for row in found] == [row["id"] for row in listed[:10]]
        assert found[0] == {
            name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            for name, value in listed[0].items()
        }


def test_each_of_several_rewards_is_a_reason_and_has_a_weight():
    table, _ = world(4000, 0.05)
    rng = np.random.default_rng(5)
    other = explicit_margin(table) + rng.normal(0.0, 1.0, 4000)
    named = {"reward_a_chosen": table.column("reward_chosen"), "reward_a_rejected": table.column("reward_rejected")}
    named |= {"reward_b_chosen": pa.array(other), "reward_b_rejected": pa.array(np.zeros(4000))}
    table = with_columns(table.drop_columns(["reward_chosen", "reward_rejected"]), named)
    found = api.audit(table, above=0.5).to_arrow().to_pylist()
    assert found
    assert any("reward b prefers rejected" in row["reasons"] for row in found)
    weights = api.select(table, fraction=0.4).report["label_audit"]["weights"]
    assert set(weights) == {"reward a", "reward b", "margin_implicit"}
    assert weights["reward a"] > weights["reward b"]


def test_reasons_name_what_is_against_the_label():
    table, _ = world(2000, 0.1)
    found = api.audit(table, above=0.5).to_arrow().to_pylist()
    assert found
    for row in found:
        assert ("reward prefers rejected" in row["reasons"]) == (row["margin_explicit"] < 0)
        assert ("policy prefers rejected" in row["reasons"]) == (row["margin_implicit"] < 0)
        assert row["probability_wrong"] > 0.5


def test_rewards_alone_judge_labels_and_margins_against_them_do_not():
    table, _ = world(500, 0.05)
    no_policy = table.set_column(table.schema.get_field_index("policy_logp_chosen"), "policy_logp_chosen",
                                 pa.nulls(500, pa.float64()))  # fmt: skip
    found = api.audit(no_policy).to_arrow()
    assert found.num_rows
    assert found.column("margin_implicit").null_count == found.num_rows
    against = scored_table(reward_chosen=[-1.0] * 30, reward_rejected=[0.0] * 30)
    with pytest.raises(DataError, match="against the labels"):
        api.audit(against)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_command_writes_ids_and_texts_only_where_asked(text: bool, ending: str, tmp_path: Path):
    scored = data.write_scored(tmp_path / "scored", Storage(), data.scored_table(), 100)
    file = tmp_path / f"out.{ending}"
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", scored, "--output", str(file), "--above", "0", *(["--text"] if text else [])])
    assert not ended.value.code
    if ending == "parquet":
        rows = pq.read_table(file).to_pylist()
    else:
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        rows = [{**row, **({"prompt": json.loads(row["prompt"])} if text else {})} for row in rows]
    assert len(rows) > 20
    assert len({row["id"] for row in rows}) == len(rows)  # a repeated row is named once
    assert rows[0]["reasons"] == "reward prefers rejected; policy prefers rejected"
    assert ("prompt" in rows[0]) is text
    if text:
        assert rows[0]["prompt"][0]["role"] == "user"


def test_another_ending_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    scored = data.write_scored(tmp_path / "scored", Storage(), data.scored_table(60), 100)
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", scored, "--output", str(tmp_path / "out.xlsx")])
    assert ended.value.code == 2
    assert "must end with .csv or .parquet" in capsys.readouterr().err

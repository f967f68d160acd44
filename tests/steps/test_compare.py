"""`alignpot compare`: overlaps, correlations and contradictions equal those counted by hand on written subsets."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import api
from pipeline import schema as names
from pipeline.config import Storage
from pipeline.errors import ConfigError
from pipeline.selection.compare import Comparison
from pipeline.steps.select import prepare_select, select_subsets
from tests.fixtures_storage import S3Server
from tests.steps import scored_data as data
from tests.steps.conftest import Ended

METRICS = {
    "potential": {},
    "potential:weight=0.5,normalise=robust": {"weight": 0.5, "normalise": "robust"},
    "explicit": {"name": "explicit"},
    "implicit": {"name": "implicit"},
    "bees-add": {"name": "bees-add"},
    "random": {"name": "random"},
}
FRACTIONS = (0.1, 0.35)


@pytest.fixture(scope="module")
def compared(scored: str) -> dict:
    found = api.compare(scored, metrics=list(METRICS), fractions=FRACTIONS)
    return found.to_dict()


@pytest.fixture(scope="module")
def selections(scored: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Kept ids of the subset of every metric and fraction, as it was written."""
    output = tmp_path_factory.mktemp("singles")
    cases = [*itertools.product(METRICS, FRACTIONS)]
    write_sweep(scored, output, [(METRICS[text], fraction) for text, fraction in cases])
    return {
        f"{text} {fraction:g}": {row[names.ID] for row in data.rows_of(output / str(i))}
        for i, (text, fraction) in enumerate(cases)
    }


def write_sweep(scored: str, output: Path, cases: list[tuple[dict, float]]) -> None:
    sweep = [{"name": str(i), "metric": m, "select": {"fraction": f}} for i, (m, f) in enumerate(cases)]
    given = {"sweep": sweep, "output": {"formats": ["hf"], "rows_per_file": 1000}}
    select_subsets(prepare_select(data.select_config(scored, output, **given)))


@pytest.fixture(scope="module")
def scores(scored: str, scored_rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Score by id of every row that can be ranked, by metric, from subsets that keep all rows."""
    output = tmp_path_factory.mktemp("all")
    write_sweep(scored, output, [(metric, 1.0) for metric in METRICS.values()])
    found = {
        text: {row[names.ID]: row[names.POTENTIAL] for row in data.rows_of(output / str(i))}
        for i, text in enumerate(METRICS)
    }
    ranked, potential = data.potentials(data.candidates(scored_rows))
    by_hand = dict(zip((row[names.ID] for row in ranked), potential, strict=True))
    assert found["potential"] == pytest.approx(by_hand)
    return found


def test_overlap_is_that_of_single_selections(compared: dict, selections: dict[str, set[str]]):
    assert compared["selected"] == {label: len(ids) for label, ids in selections.items()}
    for one, other in itertools.product(selections, repeat=2):
        wanted = len(selections[one] & selections[other]) / len(selections[one] | selections[other])
        assert compared["overlap"][one][other] == pytest.approx(wanted), (one, other)


def common_rows(scores: dict[str, dict[str, float]]) -> list[str]:
    """Ids that every metric ranks."""
    return sorted(set.intersection(*(set(of) for of in scores.values())))


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of ranks, ties sharing the mean of theirs."""

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])

    a, b = (data.zscores(ranks(values)) for values in (one, other))
    return float((a * b).mean())


def test_rank_correlation_is_spearmans(compared: dict, scores: dict[str, dict[str, float]]):
    rows = common_rows(scores)
    assert compared["num_sampled"] == len(rows)
    arrays = {text: np.array([of[id_] for id_ in rows]) for text, of in scores.items()}
    for one, other in itertools.product(arrays, repeat=2):
        wanted = spearman(arrays[one], arrays[other])
        assert compared["rank_correlation"][one][other] == pytest.approx(wanted), (one, other)
    assert abs(compared["rank_correlation"]["potential"]["random"]) < 0.2
    assert compared["rank_correlation"]["potential"]["explicit"] > 0.5


def test_contradiction_is_what_another_metric_ranks_last(
    compared: dict, selections: dict[str, set[str]], scores: dict[str, dict[str, float]]
):
    rows = common_rows(scores)
    for text, fraction in itertools.product(METRICS, FRACTIONS):
        label = f"{text} {fraction}"
        num = int(len(selections[label]) / len(scores[text]) * len(rows))
        best = set(sorted(rows, key=lambda id_: -scores[text][id_])[:num])
        for other in METRICS:
            last = set(sorted(rows, key=lambda id_: scores[other][id_])[:num])
            assert compared["contradiction"][label][other] == pytest.approx(len(best & last) / num), (label, other)
    assert compared["contradiction"]["potential 0.1"]["potential"] == 0


def test_layout_and_place_move_no_number(compared: dict, scored_rows: pa.Table, tmp_path: Path):
    other = data.write_scored(tmp_path / "scored", Storage(), scored_rows.take(pa.array(
        np.random.default_rng(2).permutation(scored_rows.num_rows))), 7)  # fmt: skip
    found = api.compare(other, metrics=list(METRICS), fractions=FRACTIONS)
    assert found.to_dict() == compared


def numbers_after(text: str, heading: str, num_columns: int) -> list[list[float]]:
    """The numbers of the lines of a printed table."""
    lines = text.partition(heading)[2].partition("\n\n")[0].splitlines()[2:]
    return [[float(cell) for cell in line.split()[-num_columns:]] for line in lines]


def test_command_prints_the_numbers(command: Callable[..., Ended], compared: dict, scored: str):
    options = [*(f"--metric={text}" for text in METRICS), *(f"--fraction={fraction}" for fraction in FRACTIONS)]
    ended = command("compare", scored, *options)
    assert ended.code == 0, ended.err
    for heading, key in (("Overlap", "overlap"), ("Spearman", "rank_correlation"), ("Contradiction", "contradiction")):
        wanted = np.array([list(line.values()) for line in compared[key].values()])
        printed = np.array(numbers_after(ended.out, heading, wanted.shape[1]))
        assert printed == pytest.approx(wanted, abs=0.0051), heading


@pytest.mark.s3
def test_command_reads_s3(command: Callable[..., Ended], scored_rows: pa.Table, s3: S3Server):
    scored = data.write_scored(s3.url("scored"), s3.storage, scored_rows, 100)
    ended = command("compare", scored, "--endpoint-url", s3.endpoint_url)
    assert ended.code == 0, ended.err
    assert "difficulty 0.4" in ended.out, "the objective is that of the run that scored, which was dpo"


def test_metrics_whose_columns_are_null_are_left_out(
    command: Callable[..., Ended], scored_rows: pa.Table, tmp_path: Path
):
    empty = [names.REFERENCE_LOGP_CHOSEN, names.REFERENCE_LOGP_REJECTED]
    table = scored_rows
    for name in empty:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.nulls(table.num_rows, pa.float64()))
    scored = data.write_scored(tmp_path / "scored", Storage(), table, 50)
    ended = command("compare", scored)
    assert ended.code == 0, ended.err
    assert "explicit 0.1" in ended.out
    assert "random 0.4" in ended.out
    for absent in ("potential", "implicit", "bees-add", "difficulty"):
        assert f" {absent} " not in ended.out
    simpo = command("compare", scored, "--objective", "simpo:beta=2.5")
    assert "potential 0.1" in simpo.out
    assert "difficulty" not in simpo.out
    named = command("compare", scored, "--metric", "potential")
    assert named.code == 2
    assert "reference_logp" in named.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "potentail"], ["metric potentail", "potential"]),
        (["--metric", "potential:wieght=2"], ["wieght", "weight"]),
        (["--metric", "potential:weight"], ["name:key=value"]),
        (["--metric", "potential:weight=-1"], ["metric.weight", "-1"]),
        (["--fraction", "2"], ["fraction", "2"]),
        (["--fraction", "0"], ["fraction", "0"]),
        (["--fraction", "0.0001"], ["no row at all"]),
        (["--objective", "simpoo"], ["simpo"]),
        (["--objective", "simpo:bta=2"], ["bta"]),
        (["--metric", "difficulty", "--objective", "simpo"], ["difficulty", "dpo"]),
        (["--endpoint-url", "http://user:secret@host"], ["credentials"]),
    ],
    ids=" ".join,
)
def test_bad_option_is_one_clear_error(options: list[str], says: list[str], command: Callable, scored: str):
    ended = command("compare", scored, *options)
    assert ended.code == 2, ended.err
    for part in says:
        assert part in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err
    assert ended.out == ""
    assert len(ended.err.strip().splitlines()) <= 2


def test_missing_dataset_is_named(command: Callable[..., Ended], tmp_path: Path):
    ended = command("compare", tmp_path / "nowhere")
    assert ended.code == 2
    assert "nowhere" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_comparing_writes_nothing(command: Callable[..., Ended], scored_rows: pa.Table, tmp_path: Path):
    scored = data.write_scored(tmp_path / "scored", Storage(), scored_rows, 100)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert command("compare", scored).code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_difficulty_goes_with_dpo_alone(scored: str):
    def found(objective: str) -> Comparison:
        return api.compare(scored, metrics=["difficulty", "random"], objective=objective)

    assert "difficulty 0.1" in found("dpo").labels
    with pytest.raises(ConfigError, match="difficulty"):
        found("simpo")


def test_metrics_of_the_same_margins_by_other_names_go_together(scored: str):
    metrics = ["potential:normalise=none,implicit=signed", "bees-add"]
    together = api.compare(scored, metrics=metrics)
    assert together.labels == tuple(f"{name} {fraction}" for name in metrics for fraction in (0.1, 0.4))


def test_no_contradiction_is_told_where_best_and_last_rows_overlap(scored: str):
    found = api.compare(scored, metrics=["explicit"], fractions=[0.9])
    assert found.to_dict()["contradiction"] == {"explicit 0.9": {"explicit": None}}


def test_json_holds_the_same_numbers(command: Callable[..., Ended], compared: dict, scored: str):
    options = [f"--metric={text}" for text in METRICS] + [f"--fraction={fraction}" for fraction in FRACTIONS]
    ended = command("compare", scored, "--json", *options)
    assert json.loads(ended.out) == compared

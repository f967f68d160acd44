import numpy as np
import pytest

from jobs.study import scored
from pipeline import schema
from pipeline.config import Objective, Storage
from pipeline.data.place import Place
from pipeline.errors import DataError, SourceError
from pipeline.metrics.ratio import RATIO_METHODS
from tests.data.tables import scored_table, write_dataset

NUM_ROWS = 400


def columns(*, seed=0, sign=1.0):
    """Scores whose margins confirm most labels, with a tail, and confirm each other a little."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0.5, 1.0, NUM_ROWS)
    per_token = sign * (0.3 * margin + rng.normal(0.1, 0.6, NUM_ROWS))
    return {
        schema.REWARD_CHOSEN: (3.0 + margin).tolist(),
        schema.REWARD_REJECTED: [3.0] * NUM_ROWS,
        schema.POLICY_LOGP_CHOSEN: (10 * (per_token - 4.0)).tolist(),
        schema.POLICY_LOGP_REJECTED: [-40.0] * NUM_ROWS,
        schema.NUM_TOKENS_CHOSEN: [10] * NUM_ROWS,
        schema.NUM_TOKENS_REJECTED: [10] * NUM_ROWS,
    }


def dataset(tmp_path, data):
    place = Place.open(str(tmp_path / "scored"), Storage())
    table = scored_table([f"{row:04d}" for row in range(NUM_ROWS)], columns=data)
    write_dataset(place, [table.slice(0, 150), table.slice(150)])
    return str(tmp_path / "scored")


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    return scored.effects_of(dataset(tmp_path_factory.mktemp("real"), columns()), Objective(beta=1.0), 0.4)


def test_every_method_has_its_effects(effects):
    assert effects.num_rows == NUM_ROWS
    assert set(RATIO_METHODS) < set(effects.by_method)
    for name, effect in effects.by_method.items():
        assert set(effect.overlap) == set(effects.by_method) - {name}
        assert all(0 < jaccard <= 1 for jaccard in effect.overlap.values())


def test_intervals_of_w_hold_w(effects):
    for method in RATIO_METHODS:
        effect = effects.by_method[method]
        assert effect.weight_interval[0] <= effect.weight <= effect.weight_interval[1]
    low, high = effects.by_method["decorrelation"].weight_interval
    assert high - low > 0.01


def test_numbers_are_those_computed_by_hand(effects):
    data = {name: np.array(values) for name, values in columns().items()}
    explicit = data[schema.REWARD_CHOSEN] - data[schema.REWARD_REJECTED]
    implicit = np.abs(data[schema.POLICY_LOGP_CHOSEN] - data[schema.POLICY_LOGP_REJECTED]) / 10
    z = [(x - x.mean()) / x.std() for x in (explicit, implicit)]
    potential = z[0] - z[1]
    selected = np.argsort(-potential)[:160]
    by_explicit = np.argsort(-explicit)[:160]
    std = effects.by_method["std"]
    assert std.weight == pytest.approx(1.0, rel=1e-12)
    assert std.contradicted == np.mean(explicit[selected] < 0)
    both = len(set(selected) & set(by_explicit))
    assert std.overlap[scored.EXPLICIT_ONLY] == pytest.approx(both / (320 - both))
    assert effects.by_method["decorrelation"].weight == pytest.approx(np.corrcoef(explicit, implicit)[0, 1], rel=1e-9)


def test_more_weight_on_the_implicit_margin_lowers_its_rank_correlation(effects):
    by_weight = sorted(effects.by_method.values(), key=lambda effect: effect.weight)
    ranks = [effect.rank_implicit for effect in by_weight]
    assert ranks == sorted(ranks, reverse=True)
    assert effects.by_method[scored.EXPLICIT_ONLY].rank_explicit == pytest.approx(1.0)


def test_a_method_that_refuses_the_data_stands_so_in_the_table(tmp_path):
    effects = scored.effects_of(dataset(tmp_path, columns(sign=-1.0)), Objective(), 0.4)
    assert effects.by_method["bradley-terry"].weight is None
    assert "| bradley-terry | refused |" in scored.report(effects)
    assert len({line.count("|") for line in scored.report(effects).splitlines() if line.startswith("|")}) == 1


def test_rows_without_a_margin_are_left_out_and_counted(tmp_path):
    data = columns()
    data[schema.REWARD_CHOSEN][:7] = [None] * 7
    effects = scored.effects_of(dataset(tmp_path, data), Objective(), 0.4)
    assert (effects.num_rows, effects.num_left_out) == (NUM_ROWS - 7, 7)


def test_rows_too_few_to_select_from_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"400 rows with both margins; .* of them is none"):
        scored.effects_of(dataset(tmp_path, columns()), Objective(), 0.001)
    unrewarded = dataset(tmp_path / "other", columns() | {schema.REWARD_CHOSEN: [None] * NUM_ROWS})
    with pytest.raises(DataError, match="0 of 400 rows with both margins"):
        scored.effects_of(unrewarded, Objective(), 0.4)


def test_a_folder_without_a_scored_dataset_is_refused(tmp_path):
    with pytest.raises(SourceError):
        scored.effects_of(str(tmp_path), Objective(), 0.4)

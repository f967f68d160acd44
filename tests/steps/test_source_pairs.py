"""How pairs are picked is part of what a scored dataset is: another way is refused, the default leaves no trace."""

import pytest

from pipeline.config import Config
from pipeline.errors import FingerprintError
from pipeline.steps.score import prepare_score
from tests.sources import layouts as to


def config(folder, **source):
    to.write_jsonl(folder / "a.jsonl", [to.as_candidates(to.pair(prompt=f"Q{i}?")) for i in range(3)])
    return Config.model_validate(
        {
            "source": {"path": str(folder), **source},
            "scored": f"{folder}-scored",
            "reward": {"backend": "columns"},
            "metric": {"name": "explicit"},
        }
    )


def test_the_way_pairs_are_picked_is_part_of_the_fingerprint(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    *_, plain = prepare_score(config(folder))
    assert prepare_score(config(folder, pairs="best-worst"))[-1].plan == plain.plan
    with pytest.raises(FingerprintError, match="pairs"):
        prepare_score(config(folder, pairs="sweet-spot"))


def test_a_sweet_spot_run_goes_on_as_one(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    _, step, first = prepare_score(config(folder, pairs="sweet-spot"))
    assert first.plan.fingerprint["source"]["pairs"] == step.rows.reader.pairs == "sweet-spot"
    assert prepare_score(config(folder, pairs="sweet-spot"))[-1].plan == first.plan
    with pytest.raises(FingerprintError, match="pairs"):
        prepare_score(config(folder))

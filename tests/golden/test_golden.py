"""Nothing that is written down here moves unless somebody means it to. See `python -m tests.golden`."""

from pathlib import Path

import pytest

from tests.golden import scores, selections


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return selections.found(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", selections.written())
def test_selections_keep_the_same_rows_in_the_same_order_with_the_same_scores(kept: dict, name: str) -> None:
    assert kept[name] == selections.written()[name]


def test_every_selection_is_written_down(kept: dict) -> None:
    assert [*kept] == [*selections.written()]


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("engine", ["plain", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.soak])])
def test_scores_are_the_same(engine: str, smollm2_dir: Path, tmp_path: Path) -> None:
    found, written = scores.found(tmp_path / "scores", smollm2_dir, engine), scores.written()
    same_bits = scores.machine() == written["machine"]
    for name, values in written["columns"].items():
        if same_bits or not isinstance(next(value for value in values if value is not None), float):
            assert found[name] == values, name
        else:
            assert found[name] == pytest.approx(values, rel=2e-3, abs=2e-2), name

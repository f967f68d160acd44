"""The plain loop: what its stages hold open is closed, however it ends."""

import pyarrow as pa
import pytest

from pipeline.errors import ModelError
from pipeline.steps.work import Stage, run_plain


class Engine:
    """A stage that holds something open."""

    def __init__(self) -> None:
        self.is_open = True

    def __call__(self, table: pa.Table) -> pa.Table:
        return table

    def close(self) -> None:
        self.is_open = False


def test_stages_are_closed_when_a_later_one_cannot_be_built():
    engine = Engine()

    def fail():
        raise ModelError("no such model")

    stages = [Stage(name="policy", build=lambda: engine), Stage(name="reference", build=fail)]
    with pytest.raises(ModelError):
        list(run_plain(None, [], stages, None))
    assert not engine.is_open

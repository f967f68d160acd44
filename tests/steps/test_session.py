"""A Ray that cannot be had ends the command in one line and with the code that says: try again."""

from collections.abc import Iterator

import pytest
import ray

from pipeline.config import Run
from pipeline.errors import TemporaryError
from pipeline.on_ray.session import ray_session

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def no_ray_of_other_tests() -> Iterator[None]:
    ray.shutdown()
    yield
    ray.shutdown()


def test_a_local_ray_that_does_not_come_up_is_worth_another_try(monkeypatch: pytest.MonkeyPatch):
    def init(**_: object) -> None:
        # As ray's Node does after 30 seconds, which a test cannot have it wait for.
        raise Exception("The current node timed out during startup. Some more words.\nAnd lines.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(TemporaryError, match=r"timed out during startup.*again") as error, ray_session(Run(), []):
        pass
    assert "\n" not in str(error.value)


def test_a_mistake_of_ours_in_starting_ray_is_not_called_temporary(monkeypatch: pytest.MonkeyPatch):
    def init(**_: object) -> None:
        raise ValueError("num_cpus")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="num_cpus"), ray_session(Run(), []):
        pass

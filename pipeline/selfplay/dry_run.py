"""What a self-play run would take, before anything is loaded: tokens and GPU-hours by round and step."""

from collections.abc import Iterator

from pipeline.config import SelfPlayConfig
from pipeline.data.place import Place
from pipeline.errors import AlignpotError
from pipeline.faults import storage_errors
from pipeline.selfplay.estimate import estimate, render_estimate
from pipeline.selfplay.seeds import read_prompts


def dry_run(config: SelfPlayConfig) -> Iterator[str]:
    """The estimate as text: of the prompts that are there, or of `estimate.num_prompts` where they cannot be read."""
    try:
        place = Place.open(config.prompts.path, config.storage)
        place.check_readable()
        with storage_errors(config.prompts.path):
            num_prompts = read_prompts(place.fs, place.root, config.prompts).num_usable
    except AlignpotError as error:
        reason = str(error).splitlines()[0]
        yield f"prompts.path cannot be read, so estimate.num_prompts is taken: {reason}\n"
        num_prompts = None
    yield render_estimate(estimate(config, num_prompts))

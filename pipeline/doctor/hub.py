"""Checks of models, and of the token of the Hugging Face Hub."""

from collections.abc import Iterable

from pipeline.config import TorchModel
from pipeline.doctor.check import Finding, bad, ok, warn
from pipeline.errors import StorageError
from pipeline.faults import storage_errors
from pipeline.models.fingerprints import check_files, is_local, model_fingerprint, num_parameters
from pipeline.shown import listed


def model(wanted: TorchModel) -> Finding:
    """Whether the files of a model are here, or on the hub where nodes can fetch them."""
    check_files(wanted)
    where = "on disk" if is_local(wanted.model) else f"revision {model_fingerprint(wanted)['revision']}"
    parameters = num_parameters(wanted)
    if parameters is None:
        return warn(
            f"{wanted.model}, {where}: not in the cache of this machine. Each node downloads it: run `hf download "
            f"{wanted.model}` first, or give a folder that every node mounts."
        )
    return ok(f"{wanted.model}, {where}: {parameters:,} parameters")


def token(names: Iterable[str], target: str | None) -> Finding:
    """Whether the hub knows our token. names: what is read there; target: the dataset that is to be pushed."""
    from huggingface_hub import HfApi, constants, get_token

    from pipeline.data.hub import endpoint
    from pipeline.exports.hub import check_access

    if target is not None:
        check_access(target)
        return ok(f"the hub knows the token, which must be one that may write to {target}")
    if constants.HF_HUB_OFFLINE:
        return warn("HF_HUB_OFFLINE is set, so only the cache is read. Unset it where the hub can be reached.")
    if get_token() is None:
        return warn(
            f"no token, so of {listed(sorted(names), 3)} only what is public can be read. For the rest set HF_TOKEN, "
            "or run `hf auth login`."
        )
    try:
        with storage_errors("the hub"):
            HfApi(endpoint=endpoint()).whoami()
    except StorageError:
        return bad("the hub does not know the token. Renew HF_TOKEN, or run `hf auth login`.")
    return ok("the hub knows the token")

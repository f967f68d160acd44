"""Training by a command of the user's: its words are filled in, it runs without a shell, and its model is checked."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from pipeline.config import TorchModel
from pipeline.errors import AlignpotError, ConfigError, ModelError, TemporaryError
from pipeline.models.fingerprints import check_files
from pipeline.models.loading import load_tokenizer
from pipeline.training.job import TrainJob
from pipeline.training.pairs import read_pairs

_TRY_AGAIN: Final = 75  # EX_TEMPFAIL: our own commands end with it when running them again goes on


def train_with_command(job: TrainJob, folder: Path, scratch: Path) -> dict[str, Any]:
    """Run a job's command, which must make `folder` and save a whole model there.

    If the job has several datasets, or one that is not on a disk, the command gets a local copy of their rows.

    Raises:
        ConfigError: there is no such program, or the policy is one that a command cannot be told.
        TemporaryError: the command was killed.
        AlignpotError: it failed, or left no model that can be loaded.
    """
    job.check_policy_has_a_name()
    if len(job.datasets) == 1 and "://" not in job.datasets[0]:
        dataset = Path(job.datasets[0]).expanduser().resolve()
    else:
        dataset = scratch / "dataset"
        read_pairs(job, scratch).save_to_disk(dataset)
    words = []
    for word in job.settings.command:
        filled = word.replace("{dataset}", str(dataset)).replace("{policy}", job.policy.model)
        words.append(filled.replace("{output}", str(folder)))
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    except OSError as error:
        raise ConfigError(f"train.command: {words[0]} cannot be started ({error.strerror}).") from None
    if done.returncode < 0 or done.returncode == _TRY_AGAIN:
        how = f"signal {-done.returncode}" if done.returncode < 0 else "a request to try again"
        raise TemporaryError(f"train.command was ended by {how}. Run the same command again.")
    if done.returncode:
        raise AlignpotError(f"train.command ended with exit code {done.returncode}; its log says why.")
    _check_model(job, folder)
    return {}


def _check_model(job: TrainJob, folder: Path) -> None:
    """See that the folder holds a model. If the command saved no tokenizer, the policy's is added."""
    if not folder.is_dir():
        raise AlignpotError("train.command ended well but wrote nothing to {output}, a folder that it has to make.")
    held = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in held and "config.json" not in held:
        raise AlignpotError(
            "train.command wrote an adapter to {output}; wanted a whole model. Merge the adapter into the model there."
        )
    try:
        check_files(TorchModel(model=str(folder)))
    except ModelError as error:
        raise AlignpotError(
            "train.command ended well but wrote no model to {output}: config.json and safetensors are wanted, and "
            f"{held[:8] or 'nothing'} is there."
        ) from error
    if "tokenizer_config.json" not in held:
        load_tokenizer(job.policy).save_pretrained(folder)

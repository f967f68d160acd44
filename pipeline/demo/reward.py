"""The demo's reward model: SmolLM2-135M-Instruct with a linear score head that was fitted on the demo's pairs.

`reward_head.safetensors` holds the head (float32, 1 x 576) and, as metadata, how well it did on prompts that it was not
fitted on; fit_reward.py made it. `build_reward_model` puts head and body together as an ordinary sequence classifier.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ModelError

HEAD_FILE: Final = Path(__file__).with_name("reward_head.safetensors")
HEAD_KEY: Final = "score.weight"


def build_reward_model(base_dir: Path, out_dir: Path, head: Path = HEAD_FILE) -> Path:
    """The directory of the reward model under `out_dir`, put together on the first call (float32, 540 MB).

    It loads as LlamaForSequenceClassification with one logit, read at the last token of the chat-templated dialogue.
    The directory is named after the head's digest and appears by a rename: never stale, never half-written.

    Raises:
        ModelError: the head does not fit the base model.
    """
    digest = hashlib.sha256(head.read_bytes()).hexdigest()[:12]
    target = out_dir / f"smollm2-135m-reward-{digest}"
    if target.is_dir():
        return target
    out_dir.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=out_dir))
    try:
        _assemble(base_dir, head, staging)
        staging.chmod(0o755)
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def set_padding(tokenizer: Any) -> int:
    """Let the tokenizer pad with a token that no dialogue holds, on the right, and return that token's id.

    The classifier finds the last token of a row as the last one that is not padding; SmolLM2's own padding token is
    its end-of-turn token, which real dialogues contain.
    """
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"
    return int(tokenizer.pad_token_id)


def _assemble(base_dir: Path, head: Path, directory: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the head as missing, which is put in below
    try:
        model = AutoModelForSequenceClassification.from_pretrained(base_dir, num_labels=1, dtype=torch.float32)
    finally:
        logging.set_verbosity(verbosity)
    weight = load_file(head)[HEAD_KEY]
    if weight.shape != model.score.weight.shape:
        raise ModelError(
            f"the reward head has shape {tuple(weight.shape)}; {base_dir} takes {tuple(model.score.weight.shape)}. "
            "Fit it on this model: python -m pipeline.demo.fit_reward"
        )
    model.score.weight.data.copy_(weight)
    model.config.pad_token_id = set_padding(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

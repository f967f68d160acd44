"""Real models for tests: SmolLM2-135M-Instruct, and tiny random ones of several families with its tokenizer."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """Directory of SmolLM2-135M-Instruct (safetensors, tokenizer, chat template), built once into the user's cache."""
    from pipeline.demo.smollm2 import ensure_smollm2
    from pipeline.errors import ModelError

    try:
        return ensure_smollm2()
    except ModelError as error:
        pytest.skip(str(error))

"""Progress bars where nobody watches them: in a log every step of a bar is a line more."""

import os


def no_bars() -> None:
    """Keep the hub's client and transformers from drawing bars; to be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

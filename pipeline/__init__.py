"""alignpot: pick, out of a preference dataset, the pairs a language model can still learn most from."""

__version__ = "0.1.0"

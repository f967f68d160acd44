"""Whether a prompt shares a run of n words with a benchmark: the usual test for contamination, by word n-grams.

Words are those of the normalised text, see `pipeline.words`: case, spacing and punctuation do not matter. A
benchmark prompt of fewer than n words is found only where a text has its words and no others.
Memory: 8 bytes for each different n-gram of the benchmarks.
"""

import hashlib
import logging
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Prompts
from pipeline.drops import Drop
from pipeline.errors import SourceError
from pipeline.faults import is_missing
from pipeline.shown import shown, shown_path
from pipeline.sources.prompts import PROMPTS_FORMAT, open_prompts
from pipeline.sources.rows import Turn
from pipeline.sources.splits import ALL
from pipeline.words import normalised, words_of

_log = logging.getLogger(__name__)


_GramArray = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contamination:
    """The n-grams of some benchmarks, as sorted 64-bit hashes."""

    ngram: int
    grams: _GramArray

    @classmethod
    def of_texts(cls, texts: Iterable[str], ngram: int) -> "Contamination":
        """The n-grams of these texts."""
        found = np.fromiter((gram for text in texts for gram in _grams(text, ngram)), dtype=np.uint64)
        return cls(ngram=ngram, grams=np.unique(found))

    @property
    def digest(self) -> str:
        """Names the set of n-grams: 32 hex digits."""
        return hashlib.blake2b(self.grams.tobytes(), digest_size=16).hexdigest()

    def hits(self, text: str) -> bool:
        """Whether the text shares an n-gram with a benchmark."""
        grams = np.fromiter(_grams(text, self.ngram), dtype=np.uint64)
        if not (grams.size and self.grams.size):
            return False
        places = np.searchsorted(self.grams, grams).clip(max=self.grams.size - 1)
        return bool(np.any(self.grams[places] == grams))

    def hits_prompt(self, prompt: Sequence[Turn]) -> bool:
        """Whether any user turn of a prompt does."""
        return any(self.hits(turn["content"]) for turn in prompt if turn["role"] == "user")


def read_benchmark(fs: Any, path: str) -> list[str]:
    """The texts of one benchmark: lines of a .txt file, or the user turns of a file or folder of prompts alone.

    Raises:
        SourceError: no such file, none that can be read, or no text in it.
        SchemaError: no column holds prompts.
        OSError: the storage failed.
    """
    texts = _lines(fs, path) if path.lower().endswith(".txt") else _user_turns(fs, path)
    if not texts:
        raise SourceError(f"benchmark {shown_path(path)} holds no prompt. Give `decontaminate` a file of prompts.")
    return texts


def _lines(fs: Any, path: str) -> list[str]:
    try:
        with fs.open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        raise SourceError(f"benchmark {shown_path(path)} does not exist. Correct `decontaminate`.") from None
    except UnicodeDecodeError:
        raise SourceError(f"benchmark {shown_path(path)} is no UTF-8 text. Convert it.") from None
    return [line for line in text.splitlines() if line.strip()]


def _user_turns(fs: Any, path: str) -> list[str]:
    texts: list[str] = []
    num_unusable = 0
    for row in open_prompts(fs, path, Prompts(path=path, format=PROMPTS_FORMAT, split=ALL)).rows():
        if isinstance(row.prompt, Drop):
            num_unusable += 1
        else:
            texts += [turn["content"] for turn in row.prompt if turn["role"] == "user"]
    if num_unusable:
        _log.warning("benchmark %s: %d rows hold no prompt", shown(posixpath.basename(path)), num_unusable)
    return texts


def _grams(text: str, ngram: int) -> Iterator[int]:
    words = words_of(normalised(text))
    if not words:
        return
    # A whole text of fewer words is hashed like a run of n words. The two cannot be equal: they differ in length.
    for start in range(max(1, len(words) - ngram + 1)):
        gram = " ".join(words[start : start + ngram]).encode()
        yield int.from_bytes(hashlib.blake2b(gram, digest_size=8).digest(), "little")

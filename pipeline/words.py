"""What counts as a word, and which texts count as equal, wherever texts are compared."""

import re
import unicodedata
from typing import Final

_WORDS: Final = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def normalised(text: str) -> str:
    """The text in NFKC, case folded, with single spaces between words and none around."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can undo the normal form, so it is made once more.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores; of scripts that write without spaces, each character."""
    return _WORDS.findall(text)

"""Whether two texts are in the same language, as far as that can be told without a model: when in doubt, they are.

The script of a text is that of most letters; a text with kana counts as Japanese. The language of a Latin text is the
one that has at least three of its function words, and twice as many as any other language.
"""

import unicodedata
from collections import Counter
from typing import Final

from pipeline.words import normalised, words_of

_FEWEST_LETTERS: Final = 8
_FEWEST_WORDS: Final = 3
_LATIN: Final = "LATIN"
_KANA: Final = frozenset({"HIRAGANA", "KATAKANA"})
_KANA_SHARE: Final = 0.1
# Words that are common in one of these languages and rare in the others, so that few of them tell.
_FUNCTION_WORDS: Final = {
    "english": "the and of is are what how this that with for you your from should have does i my to it can",
    "german": "der und ist das nicht ein eine mit wie für auf den sich von zu wird sind auch oder dem im",
    "french": "les des est une et dans pour que qui avec sur pas ce du au vous quelle comment sont cette aux",
    "spanish": "el los las una es por con para qué cómo y del cuál su está son más pero al esta como",
    "italian": "il i di che è per una con non sono come della gli nel dei questo più alla delle cosa perché",
    "portuguese": "os uma é não para com como do da em que dos das por mais você são ao foi qual",
    "dutch": "het een en van ik niet op met voor zijn wat hoe dat aan deze naar wordt worden om bij",
}
_LANGUAGES_OF: Final[dict[str, list[str]]] = {
    word: [name for name, words in _FUNCTION_WORDS.items() if word in words.split()]
    for words in _FUNCTION_WORDS.values()
    for word in words.split()
}


def same_language(text: str, other: str) -> bool:
    """Whether nothing says that the two texts are in different languages."""
    scripts = script_of(text), script_of(other)
    if None in scripts:
        return True
    if scripts[0] != scripts[1]:
        return False
    languages = latin_language_of(text), latin_language_of(other)
    return None in languages or languages[0] == languages[1]


def script_of(text: str) -> str | None:
    """The script of most letters, such as LATIN, CYRILLIC, CJK or KANA; None for a text of few letters."""
    counts: Counter[str] = Counter()
    for letter, number in Counter(text).items():
        if letter.isascii() and letter.isalpha():
            counts[_LATIN] += number
        elif letter.isalpha():
            script = unicodedata.name(letter, "UNKNOWN").partition(" ")[0].partition("-")[0]
            counts["KANA" if script in _KANA else script] += number
    total = counts.total()
    if total < _FEWEST_LETTERS:
        return None
    if counts["KANA"] >= _KANA_SHARE * total and counts["KANA"] + counts["CJK"] > total / 2:
        return "KANA"
    return max(counts, key=lambda script: (counts[script], script))


def latin_language_of(text: str) -> str | None:
    """The one language whose function words stand out in a text of Latin script, if one does."""
    if script_of(text) != _LATIN:
        return None
    counts: Counter[str] = Counter()
    for word in words_of(normalised(text)):
        counts.update(_LANGUAGES_OF.get(word, ()))
    (first, num_first), (_, num_second) = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    return first if num_first >= max(_FEWEST_WORDS, 2 * num_second) else None

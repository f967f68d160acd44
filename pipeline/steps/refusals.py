"""The words in which a chat template refuses rows, to stand beside their count."""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.place import Place
from pipeline.drops import Reason
from pipeline.steps.score_stages import pair_values, tokenizers

_COUNTED: Final = f"tokenise: {Reason.TEMPLATE_ERROR}"


def template_words(config: Config, manifest: Manifest) -> str:
    """What a chat template says of the first row that it refused; empty if it refused none or says nothing."""
    if _COUNTED not in manifest.drops_by_reason or not config.torch_models():
        return ""
    scored = Dataset(Place.open(config.scored, config.storage), manifest)
    for _, piece in scored.split(len(manifest.files)):
        if pc.any(_refused(piece.table([schema.DROP_REASON], kept_only=False))).as_py():
            return words_in(config, piece.table(kept_only=False))
    return ""


def words_in(config: Config, table: pa.Table) -> str:
    """As `template_words`, of the rows of a table."""
    for _, prompt, chosen, rejected, *beside in pair_values(table.filter(_refused(table)).slice(0, 1)):
        dialogues = ([*prompt, *chosen], [*prompt, *rejected])
        said = (each.tokenizer.template.refusal(dialogues, *beside) for each in tokenizers(config))
        return next(filter(None, said), "")
    return ""


def _refused(table: pa.Table) -> pa.ChunkedArray:
    return pc.equal(table[schema.DROP_REASON], str(Reason.TEMPLATE_ERROR))


def with_words(reason: str, words: str) -> str:
    """The reason as it is counted, with the words of the template if it is the template's."""
    return f'{reason} ("{words}")' if words and reason == _COUNTED else reason

"""The formats by the name that `--to` takes."""

from typing import Final

from pipeline.exports.axolotl import AXOLOTL
from pipeline.exports.layout import ExportFormat
from pipeline.exports.llama_factory import LLAMA_FACTORY, LLAMA_FACTORY_KTO
from pipeline.exports.nemo_rl import NEMO_RL
from pipeline.exports.openrlhf import OPENRLHF
from pipeline.exports.trl import TRL, TRL_KTO, TRL_REWARD

_ALL: Final = (TRL, TRL_KTO, TRL_REWARD, OPENRLHF, LLAMA_FACTORY, LLAMA_FACTORY_KTO, AXOLOTL, NEMO_RL)
FORMATS: Final[dict[str, ExportFormat]] = {form.name: form for form in _ALL}

"""The formats by the name that `--to` takes."""

from typing import Final

from pipeline.exports.axolotl import AXOLOTL
from pipeline.exports.layout import ExportFormat
from pipeline.exports.llama_factory import LLAMA_FACTORY, LLAMA_FACTORY_KTO
from pipeline.exports.nemo_rl import NEMO_RL
from pipeline.exports.openrlhf import OPENRLHF
from pipeline.exports.trl import TRL
from pipeline.exports.trl_kto import TRL_KTO
from pipeline.exports.trl_reward import TRL_REWARD

FORMATS: Final[dict[str, ExportFormat]] = {
    "trl": TRL,
    "trl-kto": TRL_KTO,
    "trl-reward": TRL_REWARD,
    "openrlhf": OPENRLHF,
    "llama-factory": LLAMA_FACTORY,
    "llama-factory-kto": LLAMA_FACTORY_KTO,
    "axolotl": AXOLOTL,
    "nemo-rl": NEMO_RL,
}

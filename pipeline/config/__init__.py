"""One YAML file, typed and strict: everything that a user decides.

    section      the base of every section: what it refuses, and what is part of a fingerprint
    source       source, storage, tokens            } the sections, each key
    models       policy, reference, run             } documented at its field
    rewards      reward                             }
    services     rewards of an HTTP service         }
    selection    objective, metric, select          }
    output       output                             }
    lazy         score                              }
    combine      metric.combine, select.agreement   }
    table        output.table
    round        prompts, generate, pair, evolve, evaluate, train
    root         Config, the whole file, with sweeps and the rules across sections
    self_play    SelfPlayConfig, the whole file of self-play; rewarding: RewardConfig, that of `alignpot reward`
    prompting    PromptsConfig, the whole file of `alignpot prompts`
    presets      settings of the paper's authors, by name
    load         YAML and --set in, a checked config out
    problems     what is wrong with a config, and what a key takes, in words
    reference    the reference as Markdown, and the JSON schema

Each default is the vetted setting. Rules across sections are checked before any data or model is read.
"""

from pipeline.config.combine import Combine
from pipeline.config.load import yaml_value
from pipeline.config.models import ColumnsModel, Replicas, Run, TorchModel, VllmModel
from pipeline.config.output import Output
from pipeline.config.prompting import PromptsConfig, load_prompts, parse_prompts
from pipeline.config.rewarding import RewardConfig, load_reward, parse_reward
from pipeline.config.rewards import (
    ClassifierReward,
    ColumnsReward,
    FunctionReward,
    VllmReward,
    names_of,
    reward_key,
)
from pipeline.config.root import Config, load_config, parse_config, resolved
from pipeline.config.round import (
    SEED_STRATEGY,
    STRATEGIES,
    Evaluate,
    Evolve,
    Generate,
    Pairing,
    Prompts,
    Strategy,
    Train,
)
from pipeline.config.section import NO_CREDENTIALS, carries_credentials, without_table
from pipeline.config.selection import Explicit, Labels, Metric, Objective, Order, Select
from pipeline.config.self_play import SelfPlayConfig, SelfPlayEstimate, load_any, load_self_play, parse_self_play
from pipeline.config.services import (
    EndpointReward,
    JudgeReward,
    Judging,
    PairwisePrompt,
    PointwisePrompt,
    ServiceReward,
    VllmJudgeReward,
)
from pipeline.config.source import DEFAULT_DATE, NamedSource, Source, Storage, Tokens
from pipeline.config.table import Table, parse_target

__all__ = [
    "DEFAULT_DATE",
    "NO_CREDENTIALS",
    "SEED_STRATEGY",
    "STRATEGIES",
    "ClassifierReward",
    "ColumnsModel",
    "ColumnsReward",
    "Combine",
    "Config",
    "EndpointReward",
    "Evaluate",
    "Evolve",
    "Explicit",
    "FunctionReward",
    "Generate",
    "JudgeReward",
    "Judging",
    "Labels",
    "Metric",
    "NamedSource",
    "Objective",
    "Order",
    "Output",
    "Pairing",
    "PairwisePrompt",
    "PointwisePrompt",
    "Prompts",
    "PromptsConfig",
    "Replicas",
    "RewardConfig",
    "Run",
    "Select",
    "SelfPlayConfig",
    "SelfPlayEstimate",
    "ServiceReward",
    "Source",
    "Storage",
    "Strategy",
    "Table",
    "Tokens",
    "TorchModel",
    "Train",
    "VllmJudgeReward",
    "VllmModel",
    "VllmReward",
    "carries_credentials",
    "load_any",
    "load_config",
    "load_prompts",
    "load_reward",
    "load_self_play",
    "names_of",
    "parse_config",
    "parse_prompts",
    "parse_reward",
    "parse_self_play",
    "parse_target",
    "resolved",
    "reward_key",
    "without_table",
    "yaml_value",
]

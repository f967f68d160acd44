"""One YAML file, typed and strict: everything that a user decides.

    section      what every section refuses, and what is part of a fingerprint
    source, models, tokens, objective, metric, select, sweep, run, generation, training
                 the sections, each key documented at its field
    presets      settings of the paper's authors, by name
    root         Config, the whole file, with the rules across sections
    self_play    SelfPlayConfig, the whole file of self-play
    load, text   YAML and --set in, a checked config out
    problems, takes
                 what is wrong with a config, and what a key takes, in words
    reference    the reference as Markdown, and the JSON schema

Each default is the vetted setting. Rules across sections are checked before any data or model is read.
"""

from pipeline.config.generation import (
    SEED_STRATEGY,
    STRATEGIES,
    Evaluate,
    Evolve,
    Generate,
    Pairing,
    Prompts,
    Strategy,
)
from pipeline.config.load import load_config, load_self_play, parse_config, parse_self_play
from pipeline.config.metric import Explicit, Metric
from pipeline.config.models import ClassifierReward, ColumnsModel, ColumnsReward, TorchModel, VllmModel
from pipeline.config.objective import Objective
from pipeline.config.root import Config, resolved
from pipeline.config.run import Replicas, Run
from pipeline.config.section import NO_CREDENTIALS, carries_credentials
from pipeline.config.select import Labels, Output, Select
from pipeline.config.self_play import Estimate, SelfPlayConfig
from pipeline.config.source import Source, Storage
from pipeline.config.text import yaml_value
from pipeline.config.tokens import DEFAULT_DATE, Tokens
from pipeline.config.training import Train

__all__ = [
    "DEFAULT_DATE",
    "NO_CREDENTIALS",
    "SEED_STRATEGY",
    "STRATEGIES",
    "ClassifierReward",
    "ColumnsModel",
    "ColumnsReward",
    "Config",
    "Estimate",
    "Evaluate",
    "Evolve",
    "Explicit",
    "Generate",
    "Labels",
    "Metric",
    "Objective",
    "Output",
    "Pairing",
    "Prompts",
    "Replicas",
    "Run",
    "Select",
    "SelfPlayConfig",
    "Source",
    "Storage",
    "Strategy",
    "Tokens",
    "TorchModel",
    "Train",
    "VllmModel",
    "carries_credentials",
    "load_config",
    "load_self_play",
    "parse_config",
    "parse_self_play",
    "resolved",
    "yaml_value",
]

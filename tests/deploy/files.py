"""The files of deploy/, and the `alignpot` commands in them."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE_ROOT = "/home/ray/alignpot/"

# Stands for `on-nodes` of the image: says as whom and for what it was called.
_ON_NODES = """#!/usr/bin/env python3
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], **{name: os.environ.get(name) for name in ("RANK", "HEAD", "PORT")}}))
"""


def read(path: str) -> Any:
    """A YAML or JSON file."""
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


def shell_of_pages() -> dict[str, str]:
    """The shell code of every README of deploy/."""
    fence = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
    pages = sorted(DEPLOY.rglob("*.md"))
    return {str(page.relative_to(DEPLOY)): "".join(fence.findall(page.read_text())) for page in pages}


def constraints() -> dict[str, str]:
    """The pinned versions by package."""
    lines = (DEPLOY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def called_by_node(script: str, folder: Path, **environment: str) -> dict[str, Any]:
    """What a shell script gives to `on-nodes`: the words after it, and the variables that tell nodes apart."""
    stand_in = folder / "on-nodes"
    stand_in.write_text(_ON_NODES)
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def commands_in(text: str) -> list[list[str]]:
    """The words of each `alignpot ...` line in shell code; comments and variables stay as they are."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [re.search(r"(?:^|\s)(alignpot [a-z].*)$", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]

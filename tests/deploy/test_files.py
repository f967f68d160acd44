"""deploy/ and jobs/configs/ as a whole: a page for each folder, and no secret."""

import ast
import re
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.sources.formats import check_format_name
from tests.deploy.files import DEPLOY, ROOT

CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
SCORE_CONFIGS = [path for path in CONFIGS if not path.stem.endswith("self_play")]
FOLDERS = sorted(path for path in DEPLOY.iterdir() if path.is_dir())
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
# Key material as such, and a literal assigned to a name that calls for one.
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{30,}|://[^/\s:@]+:[^/\s@]+@"
    r"|(?i:secret_access_key|password|hf_token|auth_token)\s*[:=]\s*[\"']?[A-Za-z0-9+/]{8,}"
)


@pytest.mark.parametrize("path", SCORE_CONFIGS, ids=lambda path: path.stem)
def test_job_config_parses_and_names_a_known_format(path: Path):
    config = load_config(path)
    assert config.source is not None
    check_format_name(config.source.format)
    assert config.select is not None
    assert config.output is not None


def test_job_configs_are_there():
    assert {path.stem for path in CONFIGS} >= {"hh_dpo", "ultrafeedback_simpo", "llama3_8b_cluster"}


@pytest.mark.parametrize("path", [*CONFIGS, *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_deployed_files_hold_no_secret(path: Path):
    assert not SECRETS.search(path.read_text(encoding="utf-8"))


def test_secret_pattern_finds_one_planted():
    for planted in (
        "aws_secret_access_key: wJalrXUtnFEMI",
        "AKIA" + "A" * 16,
        "s3://user:pass@bucket",
        "HF_TOKEN=abcdefgh1",
    ):
        assert SECRETS.search(planted), planted


def test_every_folder_has_a_page_and_the_index_names_it():
    index = (DEPLOY / "README.md").read_text()
    for folder in FOLDERS:
        assert (folder / "README.md").is_file(), folder.name
        assert f"({folder.name}/README.md)" in index, folder.name


def test_schedulers_in_python_parse_and_try_75_again():
    for path in ("airflow/alignpot_dag.py", "dagster/definitions.py"):
        names = {
            node.targets[0].id: node.value.value
            for node in ast.parse((DEPLOY / path).read_text()).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        assert names["TEMPORARY"] == 75, path

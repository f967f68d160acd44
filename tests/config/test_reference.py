"""The reference and the schema say what the fields say, and jobs/CONFIG.md is the reference."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import Config, SelfPlayConfig
from pipeline.config.problems import sections_of
from pipeline.config.reference import docstrings, json_schema, reference
from pipeline.config.section import Section, mark_of
from tests.config.sections import GOOD

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


def every_section(kind: type[Section]) -> set[type[Section]]:
    fields = kind.model_fields.values()
    return {kind}.union(*(every_section(below) for field in fields for below in sections_of(field.annotation)))


SECTIONS = sorted(every_section(Config) | every_section(SelfPlayConfig), key=lambda kind: kind.__name__)


def test_the_file_in_jobs_is_the_reference():
    stored = (ROOT / "jobs" / "CONFIG.md").read_text()
    assert stored == "\n".join(reference()) + "\n", "run: alignpot config --reference > jobs/CONFIG.md"


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_key_is_documented_at_its_field(kind: type[Section]):
    keys = {name for name, field in kind.model_fields.items() if not sections_of(field.annotation)}
    assert keys <= {*docstrings(kind)} <= {*kind.model_fields}
    assert {mark_of(field) for field in kind.model_fields.values()} <= {None, "no", "by content", "of its outputs"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_schema_takes_the_vetted_configs_and_refuses_unknown_keys(path: Path):
    schema = json.loads(json_schema(self_play=path.stem.endswith("self_play")))
    config = json.loads(json.dumps(yaml.safe_load(path.read_text()), default=str))
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError, match="polcy"):
        jsonschema.validate({**config, "polcy": {}}, schema)


def test_schema_knows_objectives_bounds_and_meanings():
    schema = json.loads(json_schema())
    jsonschema.validate(GOOD, schema)
    for section in ({"objective": {"name": "simop"}}, {"select": {"fraction": 2}}, {"policy": {"model": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**GOOD, **section}, schema)
    assert schema["$defs"]["Run"]["properties"]["shard_rows"]["description"].startswith("Rows of one shard.")


def test_command_prints_reference_or_schema():
    printed = CliRunner().invoke(app, ["config", "--reference"])
    assert printed.stdout == "\n".join(reference()) + "\n"
    for options, title in (([], "Config"), (["--self-play"], "SelfPlayConfig")):
        assert json.loads(CliRunner().invoke(app, ["config", "--schema", *options]).stdout)["title"] == title

"""The JSON Schemas in configs/schema: current, and followed by every configuration that comes along."""

import inspect
import json
import re

import jsonschema
import pytest

from audiox_trainer.launch.config_schema import KINDS, dataclasses_of, text
from audiox_trainer.trainer.core.files import json_text
from audiox_trainer.trainer.manifest.manifest import line_schema
from tests.helpers.small_config import ROOT

CONFIGS = sorted(file for folder in ("", "base") for file in (ROOT / "configs" / folder).glob("*.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_current(kind):
    file = ROOT / "configs" / "schema" / f"{kind}.json"
    assert file.read_text() == text(KINDS[kind]), "run launch/config_schema.py"


def test_the_schema_of_a_manifest_line_is_current():
    file = ROOT / "configs" / "schema" / "manifest_line.json"
    assert file.read_text() == json_text(line_schema()), "run launch/config_schema.py"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.relative_to(ROOT / "configs").as_posix())
def test_every_configuration_names_the_schema_that_it_follows(file):
    data = json.loads(file.read_text())
    schema = json.loads((file.parent / data["$schema"]).read_text())
    jsonschema.validate(data, schema)
    for key, value, reason in (("colour", 1, "colour"), ("$schema", 3, "not of type")):
        with pytest.raises(jsonschema.ValidationError, match=reason):
            jsonschema.validate(data | {key: value}, schema)


def test_the_schema_explains_keys():
    loop = json.loads((ROOT / "configs" / "schema" / "distillation.json").read_text())["$defs"]["LoopConfig"]
    assert "samples" in loop["properties"]["micro_batch"]["description"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_comment_of_a_key_is_lost(kind):
    """The schema takes a key's comment from the line of the key; one inside brackets would be missing."""
    for config in set(dataclasses_of(KINDS[kind])):
        assert not re.search(r"^    \w+: .*[(\[]$", inspect.getsource(config), re.M), config

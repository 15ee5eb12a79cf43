"""Configurations that are nearly right: each is refused with the place of its fault, or is exactly what was written."""

import json

import jsonschema
import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.config_reader import read_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from tests.helpers.fuzzing import both, changed_bytes, changed_json, refusal

INT64 = 2**63
REASONS = (
    "unknown key",
    "missing",
    "is not allowed; expected",
    "must",
    "not JSON",
    "stands there",
    "nested",
    "half a character",
    "codec can't decode",
    "extends",
    "null",
)


def leaves(value, path=""):
    if isinstance(value, dict) or (isinstance(value, list) and value):  # an empty object leaves all to defaults
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def check(config, written, schema):
    """What a configuration has to be that was accepted."""
    jsonschema.Draft202012Validator(schema).validate(written)  # another library's opinion of every type and bound
    read = dict(leaves(strict.to_dict(config)))
    for path, value in leaves(written):
        if path.startswith(".$schema"):
            continue
        assert read[path] == value and isinstance(read[path], bool) == isinstance(value, bool), f"{path} has changed"
        assert not isinstance(value, int) or abs(value) < INT64, f"{path}: {value} fits no integer of torch"
    assert strict.parse(type(config), strict.to_dict(config)) == config


@both
@pytest.mark.parametrize(("kind", "name"), [("pretraining", "tiny"), ("distillation", "distill_tiny")])
def test_values(fuzzer, share, root, tmp_path, kind, name):
    good = read_config(root / "configs" / f"{name}.json")
    schema = json.loads((root / "configs" / "schema" / f"{kind}.json").read_text())
    load = load_pretrain_config if kind == "pretraining" else load_distill_config
    path = tmp_path / "run.json"

    def attempt(value):
        path.write_text(json.dumps(value))
        return read(load, path, value, schema)

    assert all(fuzzer.run("configuration, values", changed_json(good), 150 * share, attempt))


@both
def test_bytes(fuzzer, share, root, tmp_path):
    good = json.dumps(read_config(root / "configs" / "tiny.json"), indent=1).encode()
    schema = json.loads((root / "configs" / "schema" / "pretraining.json").read_text())
    path = tmp_path / "run.json"

    def attempt(data):
        path.write_bytes(data)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        return read(load_pretrain_config, path, value, schema)

    assert all(fuzzer.run("configuration, bytes", changed_bytes(good, most=3), 150 * share, attempt))


def read(load, path, value, schema):
    try:
        config = load(path)
    except (ValueError, FileNotFoundError) as error:
        return refusal(error, REASONS, str(path), "extends")
    check(config, value, schema)
    return ""

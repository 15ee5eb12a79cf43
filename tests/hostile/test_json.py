"""JSON that overflows a stack or a float, in every reader: a ValueError that names the file, and no traceback."""

import json

import pytest

from audiox_trainer.models import strict
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.config_reader import apply_override, read_json
from audiox_trainer.trainer.core.integrity import read_manifest
from audiox_trainer.trainer.data.shards import read_index
from audiox_trainer.trainer.engine.kernel_selection import read_table
from audiox_trainer.trainer.generation.prompts import read_prompts
from audiox_trainer.trainer.manifest.endpoint import _parse_answer
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.manifest.scan import scan

DEEP = {
    "lists": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "closed": "[" * 50_000 + "]" * 50_000,
    "101 levels": '{"audio": "a.wav", "x": ' + "[" * 101 + "]" * 101 + "}",
    "500 levels": '{"audio": "a.wav", "x": ' + '{"a":' * 500 + "1" + "}" * 501,
    "mixed": '{"text": "a", "x": ' + '[{"a":' * 90 + "1" + "}]" * 90 + "}",
}


def scanned(path):
    (path.parent / "clip.wav").touch()
    path.rename(path.parent / "clip.json")
    scan(path.parent, path.parent / "out.jsonl", "audio", False)


def hashes(path):
    path.rename(path.parent / "manifest.json")
    read_manifest(path.parent)


def index(path):
    path.rename(path.parent / "index.json")
    read_index(path.parent)


READERS = {
    "manifest": read_entries,
    "prompts": lambda path: read_prompts(path, {}),
    "configuration": read_json,
    "override": lambda path: apply_override({}, f"a={path.read_text()}"),
    "side-car": scanned,
    "hashes": hashes,
    "index": index,
    "answer": lambda path: _parse_answer(path.read_text() + "}", {"type": "object"}),
    "kernels": read_table,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_values_nested_too_deeply(tmp_path, reader, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        reader(path)
    assert type(caught.value) is not RecursionError and len(str(caught.value)) < 1000


def test_a_last_step_that_is_nested_too_deeply(tmp_path):
    (tmp_path / load.LATEST).write_text(DEEP["lists"])
    assert load._last_saved_step(tmp_path) == "", "as any other damage"


@pytest.mark.parametrize("text", ["[" * 100 + "]" * 100, "[" + "[1], " * 1000 + "[1]]", '"[[[["'])
def test_values_that_are_not(text):
    assert strict.parse_json(text) == strict.parse_json(text.encode()) == json.loads(text)


HUGE = [10**309, -(10**309), 10**4000, float("inf"), -float("inf"), float("nan")]


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("key", ["guidance", "shift", "steps", "timesteps"])
def test_numbers_beyond_a_float(key, value):
    value = [value] if key == "timesteps" else value
    with pytest.raises(ValueError, match=f"sampling.{key}"):
        strict.parse(SamplingConfig, {key: value}, "sampling")


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("key", ["start", "end", "tempo", "category", "SED"])
def test_numbers_of_a_manifest_beyond_a_float(tmp_path, key, value):
    value = json.dumps(value)
    value = {"category": f'{{"a": {value}}}', "SED": f'[{{"start": {value}, "end": 1, "event": "a"}}]'}.get(key, value)
    (tmp_path / "m.jsonl").write_text(f'{{"audio": "a.wav", "domain": "music", "{key}": {value}}}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:1: "):
        read_entries(tmp_path / "m.jsonl")


@pytest.mark.parametrize("text", ['{"audio": "a.wav", "mine": "\\ud800"}', '{"\\uDFFF": 1}', '["\\ud83d"]'])
@pytest.mark.parametrize("reader", ["manifest", "prompts", "configuration", "side-car", "answer"])
def test_half_a_character(tmp_path, reader, text):
    """No file could hold it: not the report of a preparation, after all its work."""
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        READERS[reader](path)
    assert type(caught.value) is ValueError
    with pytest.raises(ValueError, match="half a character"):
        strict.parse_json('"\udcff"')


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud800"', '"\\\\u0000"', '"\\u00e9"'])
def test_whole_characters(text):
    assert strict.parse_json(text) == json.loads(text)

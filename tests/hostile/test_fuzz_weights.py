"""Weights folders that are nearly right: each is refused, or holds finite floats of the model that it describes."""

import json
import struct

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from audiox_trainer.models import strict
from audiox_trainer.models.audiox import WEIGHTS
from audiox_trainer.models.config import ModelConfig
from audiox_trainer.models.weights import FLOATS
from audiox_trainer.trainer.checkpoint.weights_folder import FILES, load_weights
from audiox_trainer.trainer.core.integrity import MANIFEST, file_entry, write_manifest
from tests.helpers.fuzzing import SCALARS, both, changed_bytes, changed_json, refusal

REASONS = (
    *("is damaged", "do not fit the model", "the weights have", "the weights are not finite", "the weights are"),
    *("unknown key", "missing; expected", "is not allowed; expected", "must", "nested", "has changed", "Expecting"),
    *("not in manifest", "codec can't decode", "a clip of", "half a character", "Invalid", "Extra data"),
    "has at least",
)  # fmt: skip


@pytest.fixture(scope="module")
def good(weights):
    """Both files of a folder. The model has 100 kB and loads in milliseconds."""
    return {name: (weights / name).read_bytes() for name in FILES}


def attempt(folder, files, manifest):
    """With a manifest of its own, as somebody writes it who changes the files on purpose."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).unlink(missing_ok=True)
    if manifest:
        write_manifest(folder, {"step": 1, "files": {name: file_entry(folder / name) for name in FILES}})
    try:
        model = load_weights(folder)
    except ValueError as error:
        return refusal(error, REASONS, str(folder))
    config = json.loads(files[FILES[0]])
    assert model.config == strict.parse(ModelConfig, config["model"])
    header, data = split(files[WEIGHTS])
    own = model.state_dict()
    assert own.keys() == header.keys() - {"__metadata__"}
    for name, tensor in own.items():
        kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[header[name]["dtype"]]
        begin, end = header[name]["data_offsets"]
        there = torch.frombuffer(bytearray(data[begin:end]), dtype=kind).reshape(header[name]["shape"])
        assert kind in FLOATS and tensor.isfinite().all() and torch.equal(tensor, there.to(tensor.dtype))
    return ""


def split(data):
    """Header and body of a safetensors file, read by nothing but its format."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@both
def test_bytes(fuzzer, share, tmp_path, good):
    """The header is where a reader can be misled; a change behind it is a changed number."""
    size = 8 + struct.unpack("<Q", good[WEIGHTS][:8])[0]
    inputs = st.one_of(changed_bytes(good[WEIGHTS], 3, size), changed_bytes(good[WEIGHTS], 2))
    run = lambda data: attempt(tmp_path, good | {WEIGHTS: data}, manifest=False)  # noqa: E731
    assert all(fuzzer.run("weights, bytes", inputs, 60 * share, run))


@both
def test_header(fuzzer, share, tmp_path, good):
    header, data = split(good[WEIGHTS])

    @st.composite
    def inputs(draw):
        changed = json.loads(json.dumps(header))
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from(list(changed)))
            what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "remove", "rename", "value", "metadata"]))
            kinds = ["F32", "F16", "BF16", "I64", "U8", "BOOL", "F64", "F8_E4M3", "F4", "C64", "X", ""]
            if what == "dtype" and isinstance(changed[name], dict):
                changed[name]["dtype"] = draw(st.sampled_from(kinds))
            elif what == "remove":
                del changed[name]
            elif what == "rename":
                changed[draw(st.sampled_from(["x", "", "backbone", "\0", "a" * 300]))] = changed.pop(name)
            elif what == "metadata":
                changed["__metadata__"] = draw(SCALARS)
            elif what == "value" or not isinstance(changed[name], dict):
                changed[name] = draw(SCALARS)
            else:
                number = st.sampled_from([0, 1, 2, 4, 16, 32, 64, 4096, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -1, 0.5])
                changed[name][what] = draw(st.lists(number, max_size=3))
        return joined(changed, data)

    run = lambda data: attempt(tmp_path, good | {WEIGHTS: data}, manifest=True)  # noqa: E731
    assert all(fuzzer.run("weights, header", inputs(), 60 * share, run))


@both
def test_values(fuzzer, share, tmp_path, good):
    """One number of one tensor, in any of the formats."""
    header, data = split(good[WEIGHTS])
    state = {
        name: torch.frombuffer(bytearray(data[slice(*entry["data_offsets"])]), dtype=torch.float32).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
    number = st.sampled_from([0.0, 1.0, -1.0, 1e38, float("nan"), float("inf"), -float("inf"), 65504.0, 1e-45])
    kind = st.sampled_from([*FLOATS, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn])

    def run(drawn):
        name, value, kind, place = drawn
        tensor = state[name].flatten().clone()
        tensor[place % len(tensor)] = value
        changed = state | {name: tensor.reshape(state[name].shape).to(kind)}
        return attempt(tmp_path, good | {WEIGHTS: save(changed)}, manifest=True)

    inputs = st.tuples(st.sampled_from(sorted(state)), number, kind, st.integers(0, 10**6))
    assert all(fuzzer.run("weights, numbers", inputs, 40 * share, run))


@both
def test_config(fuzzer, share, tmp_path, good):
    values = changed_json(json.loads(good[FILES[0]])).map(lambda value: json.dumps(value).encode())
    inputs = st.one_of(values, values, changed_bytes(good[FILES[0]], 2))
    run = lambda data: attempt(tmp_path, good | {FILES[0]: data}, manifest=True)  # noqa: E731
    assert all(fuzzer.run("weights, config.json", inputs, 80 * share, run))

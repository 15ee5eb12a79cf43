"""The trial of tiles runs in Triton's interpreter, where times mean nothing, and leaves out what computes wrongly."""

import pytest
import torch
import triton

from audiox_trainer.kernels.tiles import KERNELS, Tiles, attention_tiles
from audiox_trainer.launch import bench_tiles as tiles
from tests.helpers.small_config import small_config

OTHERS = {kernel: [Tiles(32, 32, 4, 1)] for kernel in KERNELS}


@pytest.fixture
def model():
    return small_config(None, "model.backbone.heads=1").model


def measure(model, dtype=torch.float16, candidates=OTHERS):
    return tiles.measure(model, batch=1, dtype=dtype, rounds=1, inner=1, write=False, candidates=candidates)


@pytest.mark.slow
@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="on a GPU the command itself is run")
def test_each_kernel_is_tried_with_each_tile(model):
    result = measure(model)
    assert result["failed"] == []
    assert {row["kernel"]: row["queries"] for row in result["rows"][1::2]} == dict.fromkeys(KERNELS, 32)
    fastest = {row["kernel"]: row for row in sorted(result["rows"], key=lambda row: -row["ms"])}
    for kernel, (queries, keys, warps, stages) in result["tiles"].items():
        row = fastest[kernel]
        assert [queries, keys, warps, stages] == [row[name] for name in ("queries", "keys", "warps", "stages")]
    assert any("fastest: forward" in line for line in tiles.summary_lines(result))


def test_what_fails_or_computes_otherwise_is_left_out(monkeypatch):
    good, wrong, broken = (Tiles(n, 32, 4, 1) for n in (64, 32, 16))

    def call(kernel, chosen):
        if chosen.forward == broken:
            raise RuntimeError("out of resource: shared memory\nmore lines")
        return (torch.ones(3) * (1 if chosen.forward == good else 2),)

    first = attention_tiles(64, torch.float16, (9, 0))
    trials = {t: tiles.replace(first, forward=t) for t in (good, wrong, broken)}
    seconds, failed = tiles.time_trials("forward", trials, call, 1, 1, torch.device("cpu"))
    assert set(seconds) == {good}
    assert failed == {
        wrong: "results are off by 1 of the largest value",
        broken: "out of resource: shared memory",
    }


def test_float32_and_a_cpu_without_the_interpreter_are_refused(model, monkeypatch):
    with pytest.raises(ValueError, match="fp32; the table of tiles is for bf16 and fp16"):
        measure(model, torch.float32)
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
        with pytest.raises(ValueError, match="timed on a GPU, and none is here"):
            measure(model)

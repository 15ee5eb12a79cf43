"""Compiles what launch/measure.sh launches of the Triton kernels, for a GPU that need not be here, into a cache that
goes there with the checkout. Run it in the checkout's root:

    python -m tests.kernels.compile_ahead .triton            # for an H100 or H200
    python -m tests.kernels.compile_ahead .triton kernels    # what one part of it launches
    python -m tests.kernels.compile_ahead .triton --check    # there: fails if the cache lacks anything

The cache fits the same build of Triton for the same Python; another one ignores it, and compiles its own. What
torch.compile makes is not in it, nor what the tests of compilation launch. Triton notes the paths of its files: these
are relative, so the checkout may be anywhere, as long as commands run in its root.
"""

import argparse
import contextlib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # decided when kernels are imported
    os.environ["TRITON_INTERPRET"] = "0"

import pytest
import torch
import triton

from audiox_trainer.kernels.joint_attention import launch_backward, launch_forward
from audiox_trainer.kernels.tiles import KERNELS, attention_tiles
from audiox_trainer.launch.bench_tiles import CANDIDATES
from audiox_trainer.models.config import ModelConfig
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.engine.kernel_cases import BlockShape
from tests.helpers.small_config import ROOT, small_config
from tests.kernels.launches import attention_inputs, compiled_only, launch_block

TESTS = [str(ROOT / "tests/kernels/test_triton.py"), "-m", "not slow", "-k", "bfloat16 or padding or one_modulation"]
# Their comparisons fail, since nothing computes; by then everything was launched.
QUIET = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no"]


def shipped(name: str) -> ModelConfig:
    return load_pretrain_config(ROOT / "configs" / f"{name}.json").model


def blocks(model: ModelConfig, *batches: int, sm: int) -> None:
    for batch in batches:
        launch_block(BlockShape.from_model(model, batch), sm)


def kernel_tests(sm: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(TESTS + QUIET)


def tiles(sm: int) -> None:
    """Each kernel of the attention with the tiles that the benchmark tries."""
    shape = BlockShape.from_model(shipped("2p7b"), 30)
    inputs, first = attention_inputs(shape), attention_tiles(shape.head_width, torch.bfloat16, divmod(sm, 10))
    x, c, lse = launch_forward(*inputs, first.forward)
    for kernel in KERNELS:
        for candidate in CANDIDATES[kernel]:
            trial = replace(first, **{kernel: candidate})
            try:
                if kernel == "forward":
                    launch_forward(*inputs, trial.forward)
                else:
                    launch_backward(*inputs, x, c, lse, x, c, trial)
            except Exception as error:  # too large for this GPU: the benchmark leaves it out
                print(f"{kernel} {candidate}: {error}", file=sys.stderr)


def resume(sm: int) -> None:
    """The small run of tests/gpu/test_resumed_run.py."""
    text = 'model.text={"kind": "t5", "dim": 32, "max_tokens": %d, "pad_to_multiple_of": 32}'
    for tokens in (32, 64):
        blocks(small_config(None, text % tokens, "model.backbone.heads=1").model, 4, sm=sm)


# By part of launch/measure.sh: what is launched outside of compiled blocks.
PARTS: dict[str, Callable[[int], None]] = {
    "tests": kernel_tests,
    "kernels": lambda sm: blocks(shipped("2p7b"), 30, sm=sm),
    "tiles": tiles,
    "train": lambda sm: blocks(shipped("2p7b"), 8, 4, sm=sm),
    "memory": lambda sm: blocks(shipped("single_gpu"), 8, sm=sm),
    "resume": resume,
    "sample": lambda sm: blocks(shipped("2p7b"), 1, 2, sm=sm),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the cache, in this checkout")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 80, 90 (default), 100")
    parser.add_argument("--check", action="store_true", help="fail if anything has to be compiled")
    arguments = parser.parse_intermixed_args(argv)  # options may stand between folder and parts
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: no part; there are {', '.join(PARTS)}")
    if not arguments.check and (arguments.folder.is_absolute() or ".." in arguments.folder.parts):
        parser.error(f"{arguments.folder}: give a folder in the checkout, by its path from here")
    return arguments


def main() -> int:
    arguments, counts, begin = parse(), Counter[bool](), time.monotonic()

    def count(*, cache_hit: bool, **_: Any) -> None:
        counts[cache_hit] += 1

    triton.knobs.cache.dir = str(arguments.folder)
    triton.knobs.compilation.store_binary_only = True
    triton.knobs.compilation.listener = count
    with compiled_only(arguments.capability):
        for name in arguments.parts or PARTS:
            before = counts.total()
            PARTS[name](arguments.capability)
            if counts.total() == before:
                raise RuntimeError(f"{name}: nothing was launched")
    megabytes = sum(file.stat().st_size for file in arguments.folder.rglob("*") if file.is_file()) / 1e6
    print(
        f"{counts[True]} kernels were there, {counts[False]} were compiled: {time.monotonic() - begin:.0f} s, "
        f"{megabytes:.1f} MB, Triton {triton.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}"
    )
    return int(arguments.check and counts[False] > 0)


if __name__ == "__main__":
    sys.exit(main())

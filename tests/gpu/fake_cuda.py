"""Fake CUDA on a machine, and in a build of torch, without it. `load` comes before torch is imported.

    load(build(folder))
    with gpu() as transfers: ...

Tensors say that they are on cuda:0, and hold no numbers. An operation that mixes devices raises. Copies between host
and device are noted with the line of the project that makes them, as is each place where the host waits for the device.
"""

import contextlib
import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("trainer", "models", "kernels")
SOURCE = Path(__file__).with_suffix(".cpp")
NUMBERS = ("tolist", "item", "__float__", "__int__", "__bool__")


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def compiler() -> str | None:
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compiles the library into `folder`, in three seconds."""
    library, include, command = folder / "libfakecuda.so", _torch() / "include", compiler()
    assert command
    flags = ["-O1", "-shared", "-fPIC", "-std=c++20", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    libraries = [f"-L{_torch() / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run([command, *flags, str(SOURCE), "-o", str(library), *libraries], check=True)
    return library


def run(module: str, folder: Path) -> Any:
    """What `python -m module LIBRARY FILE` writes into its file, as JSON. A test is skipped where it cannot run."""
    import pytest
    import torch

    if torch.version.cuda:
        pytest.skip("this build of torch has CUDA itself")
    if compiler() is None:
        pytest.skip("no C++ compiler: c++, g++ or clang++")
    command = [sys.executable, "-m", module, build(folder), folder / "results.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def load(library: Path) -> None:
    """To be called before torch is imported: it asks for CUDA's hooks once."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))
    import torch

    torch.autograd.set_multithreading_enabled(False)  # the engine has no thread for a device that is not there


def line_of_project() -> str:
    """The innermost line of the project's own code on the stack."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if any(folder in path.parts for folder in FOLDERS) and "tests" not in path.parts:
            return f"{path.parent.name}/{path.name}:{frame.lineno} {frame.line}"
    return "no line of the project"


class Transfers:
    """Transfers between host and device: `waits` where the host stands still until the device has caught up."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def wait(self, what: str) -> None:
        self.waits[f"{what} at {line_of_project()}"] += 1

    def clear(self) -> None:
        self.waits.clear()
        self.copies.clear()


def _mode(transfers: Transfers) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def devices(values: Any) -> set[str]:
        return {x.device.type for x in tree_leaves(values) if isinstance(x, torch.Tensor)}

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            before, name = devices((args, kwargs)), str(func)
            crossed = before | devices(out)
            if name in ("aten._to_copy.default", "aten.copy_.default") and crossed == {"cpu", "cuda"}:
                way = "to the device" if devices(out) == {"cuda"} else "to the host"
                if kwargs.get("non_blocking") or (name == "aten.copy_.default" and args[2:3] == (True,)):
                    transfers.copies[f"{way} at {line_of_project()}"] += 1
                else:
                    transfers.wait(f"a copy {way}")
            elif name == "aten.nonzero.default" and before == {"cuda"}:
                transfers.wait("nonzero")
            return out

    return Noting()


def _number(transfers: Transfers, name: str) -> Any:
    """`tolist` and the like of a fake tensor: ones. The device's are waited for."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    original = getattr(torch.Tensor, name)

    def call(self: Any, *args: Any) -> Any:
        if not isinstance(self, FakeTensor):
            return original(self, *args)
        if self.device.type == "cuda":
            transfers.wait(name)
        one = 1.0 if self.dtype.is_floating_point else 1

        def nested(shape: tuple[int, ...]) -> Any:
            return [nested(shape[1:]) for _ in range(shape[0])] if shape else one

        return {"tolist": nested(tuple(self.shape)), "__float__": 1.0, "__int__": 1, "__bool__": True}.get(name, one)

    return call


def _pin_memory(self: Any, *_: Any) -> Any:
    if self.device.type != "cpu":  # as torch says it
        raise RuntimeError(f"cannot pin a tensor on {self.device}: only dense CPU tensors can be pinned")
    return self


def _apply(self: Any, function: Any, recurse: bool = True) -> Any:
    """`nn.Module._apply` for fake parameters, whose data torch can neither swap nor set."""
    import torch

    for module in self.children():
        module._apply(function)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = function(parameter)
            if moved is not parameter:
                self._parameters[name] = torch.nn.Parameter(moved.detach(), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


@contextlib.contextmanager
def gpu() -> Iterator[Transfers]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    transfers = Transfers()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", _apply))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pin_memory))
        for name in NUMBERS:
            stack.enter_context(mock.patch.object(torch.Tensor, name, _number(transfers, name), create=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_mode(transfers))
        yield transfers

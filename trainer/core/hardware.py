"""This machine: its description, devices, precisions and peak speed."""

import ctypes
import os
import platform
import resource
import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .gpu_specs import find_gpu

PACKAGES = ("torch", "deepspeed", "mosaicml-streaming", "transformers", "triton", "flash-attn", "torchao", "numpy")
OPEN_FILES = 65536
DRIVER = Path("/sys/module/nvidia/version")


def free_port() -> int:
    """A port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def allow_open_files() -> None:
    """Raises the limit of open files as far as this user may, to OPEN_FILES at most. Each group of gloo opens one for
    each other rank, so 512 ranks need more than the 1,024 that most systems begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory. By default it returns large blocks to the kernel at once, and a training
    step on a CPU then spends a tenth of its time on page faults. Thresholds set in the environment are left alone."""
    if platform.libc_ver()[0] == "glibc" and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**30)


def fastest_precision() -> Literal["fp32", "bf16"]:
    """The precision in which this machine computes fastest."""
    return "bf16" if torch.cuda.is_available() or cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16. Without them bf16 is 4 times slower than fp32 with AVX-512, and
    tens of times slower without. On x86, oneDNN reports support for bf16 with AVX-512 alone."""
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pinned(x: Tensor) -> Tensor:
    """`x` in memory that a GPU copies from by itself. What already is on a device stays there."""
    return x.pin_memory() if x.device.type == "cpu" else x


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy `x` to the device asynchronously; a copy to a GPU goes through pinned memory."""
    return pinned(x).to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def describe() -> dict[str, str]:
    """Processor, GPU, versions and commit, for reports."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    facts = {"cpu": f"{name}, {os.cpu_count()} cores", "python": platform.python_version()}
    if torch.cuda.is_available():
        facts["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        facts |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        facts["driver"] = DRIVER.read_text().strip() if DRIVER.exists() else "unknown"
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts | {"commit": _commit()}


def description_lines(host: dict[str, str]) -> list[str]:
    """The result of `describe`, as lines above a table."""
    first = [host[name] for name in ("gpu", "cpu") if name in host]
    rest = [f"{name} {value}" for name, value in host.items() if name not in ("gpu", "cpu") and value != "absent"]
    return ["; ".join(first), ", ".join(rest)]


def _commit() -> str:
    """The commit of this source, with "-dirty" if it was changed; "unknown" without git."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that MFU is relative to: from the data sheet of a known GPU, else measured on large matrix products."""
    if device.type == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        if gpu is not None:
            return gpu.flops if dtype == torch.bfloat16 else gpu.fp32
    slow = device.type == "cpu" and dtype == torch.bfloat16 and not cpu_has_bf16()  # seconds for one of 1024
    size = 256 if slow else 1024
    own = torch.Generator(device).manual_seed(0)  # a run's random state stays as it is
    a = torch.randn(size, size, device=device, dtype=dtype, generator=own)
    best = float("inf")
    for _ in range(12):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def has_mps() -> bool:
    """Whether this is an Apple machine whose GPU torch can use."""
    return torch.backends.mps.is_available()


def choose_device(name: torch.device | str | None) -> torch.device:
    """The named device; by default the GPU if there is one. Raises ValueError if this machine does not have it."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # no such name or backend, no CUDA in torch
        count = torch.cuda.device_count()
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if has_mps() else [])])
        raise ValueError(f"device: {str(name)!r} cannot be used ({str(error).splitlines()[0]}); here: {here}") from None
    return device

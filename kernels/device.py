"""The GPU that a kernel runs on."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def on_tensor_device(host: F) -> F:
    """A host function that launches Triton kernels, on the GPU of its first tensor. Triton itself takes the process's
    current GPU, which is another one where nobody called `torch.cuda.set_device`."""

    @functools.wraps(host)
    def call(*args: Any) -> Any:
        with torch.cuda.device_of(args[0]):
            return host(*args)

    return call  # type: ignore[return-value]

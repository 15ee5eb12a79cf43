"""How host functions launch kernels: as operators that compilation looks into, on the GPU of their tensors."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton

F = TypeVar("F", bound=Callable[..., Any])


def on_tensor_device(host: F) -> F:
    """A host function that launches Triton kernels, on the GPU of its first tensor. Triton itself takes the process's
    current GPU, which is another one where nobody called `torch.cuda.set_device`."""

    @functools.wraps(host)
    def call(*args: Any) -> Any:
        with torch.cuda.device_of(args[0]):
            return host(*args)

    return call  # type: ignore[return-value]


class Operator:
    """A host function as an operator. torch.compile replaces its call by the launches that it makes, by `wrap_triton`,
    so that it plans their memory and fuses what is around them. It is made when it is first called: torch loads its
    compiler for that, which takes seconds, and a process without a GPU never calls it.

    Triton's interpreter computes with NumPy, which nothing can look into: there the operator is opaque, and needs its
    `register_fake`."""

    def __init__(self, name: str, host: Callable[..., Any]) -> None:
        self.name, self.host = name, host
        self.later: list[Callable[[Any], Any]] = []
        self.made: Any = None
        OPERATORS.append(self)

    def __call__(self, *args: Any) -> Any:
        return (self.made or self.make())(*args)

    def make(self) -> Any:
        if self.made is None:
            kind = torch.library.custom_op if triton.knobs.runtime.interpret else torch.library.triton_op
            self.made = kind(self.name, mutates_args=())(self.host)
            for register in self.later:
                register(self.made)
        return self.made

    def register_fake(self, fake: F) -> F:
        """Decorates the function that gives the shapes of its results. As of torch's operators."""
        self.later.append(lambda made: made.register_fake(fake))
        return fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As of torch's operators."""
        self.later.append(lambda made: made.register_autograd(backward, setup_context=setup_context))


OPERATORS: list[Operator] = []


def make_operators() -> None:
    """Makes those that have not been called yet. Call it before torch.compile, which cannot look into their making."""
    for operator in OPERATORS:
        operator.make()


def triton_op(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorates a host function as an `Operator`."""
    return functools.partial(Operator, name)


def wrap_triton(kernel: Any) -> Any:
    """A kernel that is to be launched by a `triton_op`. torch reads this name in the sources of host functions: the
    code of kernels that it finds so is part of what compiled code is cached under. Fractions have to be constants
    (tl.constexpr): compiled code passes others in double precision, in which kernels then compute."""
    return kernel if triton.knobs.runtime.interpret else torch.library.wrap_triton(kernel)


def multiprocessors(device: torch.device) -> int:
    """The multiprocessors of a GPU; an H100's where there is none."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; an H100's where there is none."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_capability(device)
    return 9, 0

"""Scenarios of tests/self_test/test_gradients.py, which every rank of a launch runs one after the other: gradients
under DeepSpeed, sound or with a fault in it, against those of torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch
from torch import nn

from audiox_trainer.kernels.ops import REFERENCE
from audiox_trainer.models import mmdit
from audiox_trainer.trainer.data.batches import Batch
from audiox_trainer.trainer.distillation import distill
from audiox_trainer.trainer.self_test.gradients import WrongGradientError, check_gradients, deviations
from audiox_trainer.trainer.self_test.small_run import small_run
from audiox_trainer.trainer.training import pretrain
from audiox_trainer.trainer.training.pretrain import Pretraining
from tests.helpers import scenarios
from tests.helpers.small_config import small_config, small_distill_config

GRADIENT = 64  # elements: what is reduced and is smaller is a norm or a flag
KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "pretrain": (small_config, pretrain.untrained),
    "distill": (small_distill_config, distill.untrained),
}


@contextmanager
def lost_part(at: int = 1) -> Iterator[None]:
    """What rank 1 adds to one reduction of a bucket is lost."""
    calls = 0

    def faulty(real: Callable[..., Any], source: int) -> Callable[..., Any]:
        def reduce(*tensors: Any, **settings: Any) -> Any:
            nonlocal calls
            if tensors[source].numel() > GRADIENT:
                calls += 1
                if calls == at and scenarios.WORLD.rank == 1:
                    tensors[source].zero_()
            return real(*tensors, **settings)

        return reduce

    with (
        mock.patch.object(deepspeed.comm, "all_reduce", faulty(deepspeed.comm.all_reduce, 0)),
        mock.patch.object(deepspeed.comm, "reduce", faulty(deepspeed.comm.reduce, 0)),
        mock.patch.object(deepspeed.comm, "reduce_scatter_fn", faulty(deepspeed.comm.reduce_scatter_fn, 1)),
    ):
        yield
    assert calls >= at, f"{calls} reductions, and the fault is in number {at}"


def last_micro_batch_unreduced() -> AbstractContextManager[Any]:
    """DeepSpeed #7985: the order of 0.18.6."""

    def epilogue(engine: Any) -> None:
        engine.allreduce_gradients()
        engine.optimizer.backward_epilogue()
        engine.optimizer.exit_backward()

    return mock.patch.object(deepspeed.DeepSpeedEngine, "_backward_epilogue", epilogue)


@contextmanager
def reentrant() -> Iterator[None]:
    """Blocks are recomputed the other way, and used twice in a backward pass: a model that would do both."""
    once = Pretraining.losses

    def checkpoint(*arguments: Any, use_reentrant: bool) -> Any:
        return torch.utils.checkpoint.checkpoint(*arguments, use_reentrant=True)

    def losses(training: Pretraining, step: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        (first, t), (second, _) = once(training, step, batch), once(training, step + 100, batch)
        return (first + second) / 2, t

    with mock.patch.object(mmdit, "checkpoint", checkpoint), mock.patch.object(Pretraining, "losses", losses):
        yield


FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "": nullcontext,
    "lost part": lost_part,
    "lost later part": partial(lost_part, 4),
    "last micro-batch": last_micro_batch_unreduced,
    "reentrant": reentrant,
}


def compared(folder: Path, overrides: Sequence[str], kind: str = "pretrain", compiler: str = "") -> dict[str, Any]:
    """The deviation of each update's gradient. Blocks are compiled with `compiler`, if that is given."""
    configure, build = KINDS[kind]
    small = small_run(configure(None, *overrides), scenarios.WORLD.ranks)
    compilation = mock.patch.object(nn.Module, "compile", partialmethod(nn.Module.compile, backend=compiler))
    with compilation if compiler else nullcontext():
        small = replace(small, training=replace(small.training, compile=bool(compiler)))
        found = deviations(small, build, scenarios.WORLD)
    return {"rows": [[d.role, d.setup.stage, d.setup.precision, d.total, d.worst, d.wrong] for d in found]}


def checked(folder: Path, overrides: Sequence[str], kind: str = "pretrain", fault: str = "") -> dict[str, Any]:
    """The self-test of a run on an installation with a fault: its refusal, and whether random states are the same."""
    configure, build = KINDS[kind]
    before, error = torch.get_rng_state(), ""
    with FAULTS[fault]():
        try:
            check_gradients(configure(None, *overrides), build, scenarios.WORLD, REFERENCE)
        except WrongGradientError as refusal:
            error = str(refusal)
    return {"error": error, "same": torch.equal(before, torch.get_rng_state())}


if __name__ == "__main__":
    scenarios.main({f.__name__: f for f in (compared, checked)}, lambda scenes, *overrides: overrides)

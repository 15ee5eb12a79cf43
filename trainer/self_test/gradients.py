"""The gradient self-test at the start of a run: does this installation compute the gradients that torch computes?

A small model with the run's architecture trains some updates twice, by the run's own training code: once under
DeepSpeed as the run has set it up (ranks, ZeRO stage, precision, accumulation, recomputation, overlap, overrides), once
with a plain engine of torch. Both have the same weights, which do not change, because the rate is next to zero. AdamW
without a memory of first moments then holds the very gradient that it was given, at every stage in the same way.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.ops import Ops
from ...models.config import ReleasedModelConfig
from ..checkpoint.load import TrainedModel
from ..core.config import BaseConfig, PretrainConfig, check_ranks
from ..core.distill_config import DistillConfig, RoleConfig
from ..data.batches import Batch, Conditions
from ..engine import zero
from ..engine.process_group import World
from .known_faults import TrainingSetup, describe_known_faults
from .plain_engine import PlainEngine
from .small_run import small_run

C = TypeVar("C", PretrainConfig, DistillConfig)


class UpdateResult(Protocol):
    """What an update says of itself."""

    @property
    def role(self) -> str: ...

    @property
    def applied(self) -> bool: ...


class Trainer(Protocol):
    """What is tested of a training."""

    roles: dict[str, TrainedModel]
    total: int  # updates

    def step(self, step: int, batch: Batch) -> UpdateResult: ...


Build = Callable[[C, World, Ops | None, Callable[..., zero.Engine]], Trainer]

TOLERANCES = {"fp32": 1e-4, "bf16": 0.02}  # of a gradient's norm; measured: 2e-7 and 5e-3 on two ranks
WEIGHT_FACTOR = 3  # by which the deviation of a single weight may be larger
SMALL_SHARE = 0.05  # of the whole gradient's norm: smaller ones of a weight count as this large
NOISE = 0.05  # added to all weights: new models have layers of zeros, which let no gradient pass


class WrongGradientError(ValueError):
    """DeepSpeed's gradients are not those of torch. All ranks raise it."""

    everywhere = True


@dataclass(frozen=True)
class Deviation:
    """How far a gradient under DeepSpeed is from torch's, relative to the latter's norm."""

    role: str
    setup: TrainingSetup
    total: float  # of all weights together
    worst: float  # of the weight where it is largest
    weight: str  # its name

    @property
    def wrong(self) -> bool:
        limit = TOLERANCES[self.setup.precision]
        return not (self.total <= limit and self.worst <= WEIGHT_FACTOR * limit)  # of NaN neither is true

    def __str__(self) -> str:
        return f"{self.role} {self.total:.2g} (stage {self.setup.stage}, {self.setup.precision})"


def check_gradients(config: C, build: Build[C], world: World, ops: Ops, wanted: bool | None = None) -> None:
    """Trains a small model of this run before the run itself, and prints how far DeepSpeed's gradients are from those
    of torch. Leaves random states as they were. `build` makes the run's training. `wanted`: None tests where there are
    several ranks or a GPU.

    Raises WrongGradientError, on all ranks, where a gradient is wrong.
    """
    on_gpu = world.device.type == "cuda"
    if wanted is False or (wanted is None and world.ranks == 1 and not on_gpu):
        return
    if isinstance(config.model, ReleasedModelConfig):
        if world.rank == 0:
            print("gradient self-test: left out, there is no small model of the released network", flush=True)
        return
    start = time.monotonic()
    with _same_random_states(world.device):
        small = small_run(config, world.ranks)
        worst = {d.role: d for d in sorted(deviations(small, build, world, ops), key=lambda d: (d.wrong, d.total))}
    gc.collect()  # engines and their models refer to each other
    if on_gpu:
        torch.cuda.empty_cache()
    wrong = [deviation for deviation in worst.values() if deviation.wrong]
    if wrong:
        raise WrongGradientError(_verdict(wrong[0]))
    if world.rank == 0:
        found = ", ".join(str(deviation) for deviation in worst.values())
        where = "1 rank" if world.ranks == 1 else f"{world.ranks} ranks"
        seconds = time.monotonic() - start
        print(f"gradient self-test on {where}: largest deviation of {found}; {seconds:.1f} s", flush=True)


def _verdict(found: Deviation) -> str:
    setup = found.setup
    whose = "the gradient" if found.role == "model" else f"the {found.role}'s gradient"
    how = "is not finite"
    if math.isfinite(found.total):
        limit = TOLERANCES[setup.precision]
        how = f"differs from torch's by {found.total:.2%} in all and {found.worst:.2%} in {found.weight} "
        how += f"(allowed: {limit:.2%} and {WEIGHT_FACTOR * limit:.2%})"
    return (
        f"the gradient self-test failed: at ZeRO stage {setup.stage} in {setup.precision} {whose} under DeepSpeed "
        f"{how}; {describe_known_faults(version('deepspeed'), setup)}"
    )


@contextmanager
def _same_random_states(device: torch.device) -> Iterator[None]:
    """Random states are the same after a `with` as before it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def deviations(config: C, build: Build[C], world: World, ops: Ops | None = None) -> list[Deviation]:
    """The deviation of every update of `config`, trained under DeepSpeed and by torch alone. Its rates have to be next
    to zero, and its first moments without memory, as in `small_run`."""
    tested = _trainer(zero.Engine, config, build, world, ops)
    plain = _trainer(PlainEngine, _unsharded(config), build, world, ops)
    found = []
    for update in range(tested.total):
        batch = random_batch(config, update, world)
        result = tested.step(update, batch)
        plain.step(update, batch)
        engine, reference = (trainer.roles[result.role].engine for trainer in (tested, plain))
        assert isinstance(reference, PlainEngine)
        setup = _setup(config, result.role, world.ranks)
        found.append(_deviation(result.role, setup, engine, reference, result.applied))
    for role in tested.roles.values():
        role.engine.destroy()
    return found


def _trainer(kind: type[zero.Engine], config: C, build: Build[C], world: World, ops: Ops | None) -> Trainer:
    """The run's training with one kind of engine. Its models get noise in all weights, the same for every kind."""
    generator = torch.Generator().manual_seed(config.training.seed)

    def perturbed(model: nn.Module, *settings: Any) -> zero.Engine:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator).to(parameter))
        return kind(model, *settings)

    torch.manual_seed(config.training.seed)
    return build(config, world, ops, perturbed)


def _setup(config: PretrainConfig | DistillConfig, role: str, ranks: int) -> TrainingSetup:
    common = check_ranks(config.training, ranks), config.training.activation_checkpointing
    if isinstance(config, PretrainConfig):
        return TrainingSetup(config.zero.stage, config.training.precision, *common)
    own: RoleConfig = getattr(config, role)
    return TrainingSetup(own.zero.stage, own.precision, *common)


def _unsharded(config: C) -> C:
    """The same run with a copy of the teacher on every rank."""
    if isinstance(config, PretrainConfig):
        return config
    changes: dict[str, Any] = {"teacher": replace(config.teacher, sharded=False)}
    return replace(config, **changes)


def _deviation(
    role: str, setup: TrainingSetup, engine: zero.Engine, reference: PlainEngine, applied: bool
) -> Deviation:
    """Compares the gradients of the last update. All ranks call this, and get the same."""
    if not applied:
        return Deviation(role, setup, math.inf, math.inf, "")  # DeepSpeed has dropped the gradient
    names = list(reference.gradient)
    device = reference.gradient[names[0]].device
    squares = torch.zeros(len(names), 2, dtype=torch.float64, device=device)  # of the difference, of the reference
    shards = engine.moments()["exp_avg"]
    for fragment in engine.fragments():
        expected = reference.gradient[fragment.name][fragment.start : fragment.start + fragment.length]
        difference = fragment.view(shards).to(expected) - expected
        squares[names.index(fragment.name)] += torch.stack((difference.norm(), expected.norm())).double().square()
    torch.distributed.all_reduce(squares)
    (missed, norm), (apart, norms) = squares.sum(0).sqrt().tolist(), squares.sqrt().unbind(1)
    relative = (apart / norms.clamp(min=max(SMALL_SHARE * norm, 1e-30))).nan_to_num(math.inf)
    worst = int(relative.argmax())
    return Deviation(role, setup, missed / max(norm, 1e-30), float(relative[worst]), names[worst])


def random_batch(config: BaseConfig, update: int, world: World) -> Batch:
    """This rank's samples of an update. Some have a video, given sound or a short text. Texts have one of two padded
    lengths, in turns: neighbouring ranks have different ones."""
    model, count = config.model, config.training.global_batch // world.ranks
    codec, text = model.codec, model.text
    random_state = torch.Generator().manual_seed((update * world.ranks + world.rank) + 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=random_state)

    def flags() -> Tensor:
        return torch.randint(0, 2, (count, 1, 1), generator=random_state)

    longest = max(1, text.max_tokens // text.pad_to_multiple_of) * text.pad_to_multiple_of
    tokens = longest if (update + world.rank) % 2 else max(text.pad_to_multiple_of, longest // 2)
    length = torch.randint(1, tokens + 1, (count,), generator=random_state)
    words = draw(tokens, text.dim) * (torch.arange(tokens) < length[:, None])[..., None]
    latents, given = draw(codec.frames, codec.latent_channels), torch.zeros(count, codec.frames)
    given[::2, : codec.frames // 2] = 1
    conditions = Conditions(
        draw(model.video_rows, model.video_dim) * flags(), latents * given[..., None], words, length
    )
    indexes = world.rank * count + torch.arange(count)
    names = tuple(f"self-test {index}" for index in indexes.tolist())
    paired = isinstance(config, DistillConfig) and update < config.paired_updates
    noise = draw(codec.frames, codec.latent_channels) if paired else None
    return Batch(latents, conditions, given, indexes, ("T2A",) * count, names, noise)

"""Distillation of AudioX-Base into AudioX-Turbo (section V). A student, a fake model and a discriminator head are
trained with a frozen teacher, one role per update. Every rank has all of them.

B batch, L latent frames, C latent channels.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...kernels.ops import Ops
from ...models.config import ReleasedModelConfig
from ...models.encoders.build import build_text_encoder
from ...models.lora import add_adapters
from ...models.networks import Network, build_discriminator
from ...models.sampler import override_sampling
from ...models.weights import float32_copy, sharing_copy
from ..checkpoint.initial_weights import InitialWeights, InitRecord, begin_from
from ..checkpoint.load import TrainedModel
from ..core.config import check_ranks
from ..core.distill_config import DistillConfig, RoleConfig
from ..core.update_cycle import Phase
from ..cost.operations import distillation_flops
from ..cost.role_bytes import RoleBytes, planned_roles
from ..data.batches import Batch
from ..engine import zero
from ..engine.checksum import checksum, gradient_checksum
from ..engine.ema import Ema
from ..engine.meter import Meter
from ..engine.process_group import World
from ..training.health import StepResult
from ..training.learning_rate import learning_rate
from ..training.pretrain import configure_model, silence_after
from ..training.previews import Previews, PromptSampler
from .objectives import Objectives
from .teacher import Teacher

COLLAPSED_SPREAD = 0.3  # of the data's spread
DISCRIMINATOR_WON = 0.05  # hinge loss, which is 2 for a discriminator that guesses
ROLE_PHASES: dict[str, tuple[Phase, ...]] = {
    "student": (Phase.WARM_START, Phase.STUDENT),
    "fake": (Phase.FAKE_WARM_UP, Phase.FAKE),
    "discriminator": (Phase.DISCRIMINATOR_WARM_UP, Phase.DISCRIMINATOR),
}


class Distillation:
    """The roles, their updates and their metrics."""

    bar_metrics: tuple[str, ...] = ("dm", "adversarial", "fake", "discriminator")

    def __init__(
        self,
        config: DistillConfig,
        teacher: Network,
        world: World,
        ops: Ops | None = None,
        initial: InitialWeights | None = None,
        engine: Callable[..., zero.Engine] = zero.Engine,
    ) -> None:
        """Student, fake model and the frozen teacher start with copies of `teacher`; the student with `initial`, if
        these are given. Those with adapters compute with the frozen teacher's own weights."""
        self.config, self.world, self.cycle, self.sampling = config, world, config.cycle, teacher.sampling
        self.total = self.cycle.total_updates(config.training.steps)
        self.accumulation = check_ranks(config.training, world.ranks)
        torch.manual_seed(config.training.seed)
        self.build_engine = engine
        d = config.distillation
        head = build_discriminator(config.model, d.discriminator_blocks, d.discriminator_heads)
        self.engines = {"discriminator": self._engine("discriminator", head)}
        self.init_record: InitRecord | None = None
        self.sizes = [parameter.numel() for parameter in teacher.parameters()]
        precise = replace(config.training, fp8=False)
        trunk = configure_model(float32_copy(teacher, world.device), precise, ops, config.teacher.sharded)
        frozen = zero.FrozenModel(trunk, config.teacher.precision, config.teacher.sharded, world.device)
        for name in ("student", "fake"):
            if lora := self._role(name).lora:
                model = sharing_copy(trunk)
                add_adapters(model, lora)
            else:
                model = float32_copy(teacher, world.device)
            if name == "student" and initial:
                self.init_record = begin_from(model, initial, config.init)
            sharded = self._role(name).zero.stage == 3
            self.engines[name] = self._engine(name, configure_model(model, config.training, ops, sharded))
        self.ema = Ema(config.ema, self.engines["student"].shards())
        self.roles = {
            name: TrainedModel(e, self.ema if name == "student" else None) for name, e in self.engines.items()
        }
        self.frozen = {"teacher": frozen}
        released = isinstance(config.model, ReleasedModelConfig)
        encode_text = build_text_encoder(config.model.text)
        self.teacher = Teacher(frozen, encode_text, d.guidance, d.discriminator_blocks, released, d.discriminator_heads)
        self.objectives = Objectives(config, self.engines, self.teacher, world.device)
        self.previews = Previews(config)
        self.teacher_previews: dict[str, Tensor] = {}  # sampled once, because the teacher does not change

    def _engine(self, name: str, model: nn.Module) -> zero.Engine:
        training, role = self.config.training, self._role(name)
        return self.build_engine(
            model.to(self.world.device),
            role.optimizer,
            role.zero,
            role.precision,
            training.micro_batch,
            self.accumulation,
            self.config.deepspeed,
        )

    def step(self, update: int, batch: Batch) -> StepResult:
        """Update number `update`, counted over all roles, on this rank's share of a new batch."""
        batch, phase, name = self._whole(update, batch), self.cycle.phase(update), self._role_of(update)
        engine, rate, objectives = self.engines[name], self._rate(name, phase, update), self.objectives
        if self.config.warm_start.reset_moments and update == self.cycle.first_round:
            engine.reset_moments()
        applied, objectives.sample_losses = False, []
        with self._compilation(phase):
            for micro in batch.split(self.config.training.micro_batch):
                with self.world.times("forward"):
                    loss = objectives.loss(update, micro.to(self.world.device))
                with self.world.times("backward"):
                    engine.backward(loss)
                applied = engine.step(rate)
        if applied and name == "student":
            self.ema.update(engine.shards(), self.cycle.count(ROLE_PHASES[name], update + 1))
            if phase is Phase.STUDENT and self.config.distillation.fake_alignment:
                self.engines["fake"].move_towards(engine, self.config.distillation.fake_alignment)
        k, tokens = objectives.student_step(update), batch.conditions.text.shape[1]
        flops = distillation_flops(self.config, phase, k, tokens)
        return StepResult(name, applied, {f"{name}_lr": rate}, flops, torch.cat(objectives.sample_losses))

    def fingerprint(self, update: int, batch: Batch) -> Tensor:
        """Checksums (2,) of the losses of the update's first micro-batch and of their gradient, from which nothing is
        learned. All ranks call this."""
        engine, objectives, meter = self.engines[self._role_of(update)], self.objectives, self.objectives.meter
        objectives.meter, objectives.sample_losses = Meter(), []
        try:
            with engine.repeating(), self._compilation(self.cycle.phase(update)):
                whole = self._whole(update, batch)
                micro = whole.split(self.config.training.micro_batch)[0].to(self.world.device)
                gradient = gradient_checksum(objectives.loss(update, micro), engine.module.parameters())
            return torch.stack((checksum(objectives.sample_losses), gradient))
        finally:
            objectives.meter = meter

    def _compilation(self, phase: Phase) -> AbstractContextManager[object]:
        """In which a kind of update of which the run has too few is not compiled."""
        few = self.cycle.count((phase,), self.total) < self.config.updates.compile_from
        return torch.compiler.set_stance("force_eager") if few else nullcontext()

    def _whole(self, update: int, batch: Batch) -> Batch:
        """A batch with as many latents as the model generates."""
        return batch.followed_by(*silence_after(self.config, self.engines["student"].constants), update)

    def destroy(self) -> None:
        for engine in self.engines.values():
            engine.destroy()

    def kind(self, update: int) -> str:
        return self.cycle.phase(update).value

    def can_checkpoint_after(self, update: int) -> bool:
        return self.cycle.ends_round(update)

    def planned_bytes(self) -> dict[str, RoleBytes]:
        """The bytes that each role's tensors will take on this rank, by arithmetic."""
        sizes = {name: [math.prod(shape) for shape in engine.shapes.values()] for name, engine in self.engines.items()}
        adapters = {name: sizes[name] for name in self.config.adapted}
        planned = planned_roles(self.config, self.sizes, sizes["discriminator"], adapters=adapters)
        where = self.world.rank, self.world.ranks, self.accumulation > 1
        return {role.name: role.bytes(*where) for role in planned}

    def bytes(self) -> dict[str, RoleBytes]:
        """The bytes that each role's tensors take on this rank, counted."""
        frozen = self.teacher.frozen
        roles = {
            name: role.engine.bytes(role.ema.values if role.ema else (), frozen.module)
            for name, role in self.roles.items()
        }
        return roles | {"teacher": frozen.bytes()}

    def metrics(self) -> dict[str, float]:
        """Means since the last call, and each role's last gradient norm and current bytes on this rank. All ranks call
        this."""
        values = self.objectives.meter.read()
        d = self.config.distillation
        if "adversarial" in values and "dm" in values:
            share, matching = (d.adversarial_weight * values["adversarial_gradient"], values["dm_gradient"])
            ratio = share / max(d.matching_weight * matching, 1e-12)
            values["gradient_ratio"] = ratio if d.adversarial_gradient_ratio is None else d.adversarial_gradient_ratio
        norms = {f"grad_norm/{name}": engine.gradient_norm() for name, engine in self.engines.items()}
        values |= {name: norm for name, norm in norms.items() if math.isfinite(norm)}  # nan before its first update
        return values | {f"bytes/{name}": float(counted.total) for name, counted in self.bytes().items()}

    def warnings(self, values: dict[str, float]) -> list[str]:
        """Warns of a collapsed student and of a discriminator that has won. Raises KeyError where the student was
        trained and a value that is needed is missing."""
        messages = []
        watched = {"distance": "like one another", "deviation": "silent or flat"} if "deviation_data" in values else {}
        if self.config.training.micro_batch == 1:
            watched.pop("distance", None)  # one sample has no neighbour
        for what, words in watched.items():
            share = values[f"{what}_samples"] / max(values[f"{what}_data"], 1e-9)
            if share < COLLAPSED_SPREAD:
                messages.append(
                    f"the student's samples become {words}: their {what} is {share:.2f} of the data's; lower "
                    f"student.optimizer.lr, raise fake.optimizer.lr or lower distillation.adversarial_weight"
                )
        if "discriminator" in values and values["discriminator"] < DISCRIMINATOR_WON:
            messages.append(
                f"the discriminator tells every sample from data (hinge loss {values['discriminator']:.3f}): lower "
                f"discriminator.optimizer.lr or distillation.adversarial_weight"
            )
        return messages

    def preview(self) -> tuple[list[str], Tensor]:
        """Samples of the teacher at 50 steps and at the student's number of steps, and of the student. All ranks call
        this."""
        device, own = self.world.device, self.config.sampling
        if not self.teacher_previews:
            frozen = self.teacher.frozen
            for steps in (50, own.steps):
                sampling = override_sampling(self.sampling, steps, None)
                latents = self.previews.sample(frozen.module, sampling, device, frozen.dtype)
                self.teacher_previews[f"teacher {steps}"] = latents
        student = self.sample(self.previews)
        kinds = self.teacher_previews | {f"student {own.steps}": student}
        latents = torch.cat(list(kinds.values()))
        names = [f"{name}/{kind}" for kind in kinds for name in self.previews.names]
        return names, self.previews.codec.decode(latents)

    def sample(self, sampler: PromptSampler) -> Tensor:
        """Latents (B, L, C) by the student's moving average. All ranks call this."""
        engine = self.engines["student"]
        with engine.swapped_weights(self.ema.values) as model:
            return sampler.sample(model, self.config.sampling, self.world.device, engine.dtype)

    def _role(self, name: str) -> RoleConfig:
        role: RoleConfig = getattr(self.config, name)
        return role

    def _rate(self, name: str, phase: Phase, update: int) -> float:
        """Each phase of the student has a schedule; a warm-up of the others shares that of their rounds."""
        role, warm = self._role(name), self.config.warm_start
        if phase is Phase.WARM_START:
            return learning_rate(warm.schedule or role.schedule, warm.lr or role.optimizer.lr, update, warm.updates)
        phases = tuple(one for one in ROLE_PHASES[name] if one is not Phase.WARM_START)
        turn, turns = (self.cycle.count(phases, at) for at in (update, self.total))
        return learning_rate(role.schedule, role.optimizer.lr, turn, turns)

    def _role_of(self, update: int) -> str:
        """The role that an update trains."""
        phase = self.cycle.phase(update)
        return next(name for name, phases in ROLE_PHASES.items() if phase in phases)

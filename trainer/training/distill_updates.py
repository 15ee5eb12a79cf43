"""Distillation of AudioX-Base into AudioX-Turbo (section V). A student, a fake model and a discriminator head are
trained with a frozen teacher, one role per update. Every rank has all of them.

B batch, L latent frames, C latent channels.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...kernels.ops import Ops
from ...models.audiox import AudioX
from ...models.discriminator import DiscriminatorHead
from ...models.encoders.build import build_text_encoder
from ...models.sampler import override_sampling, sampling_timesteps, shifted_timesteps
from ..checkpoint.initial_weights import InitialWeights, InitRecord, begin_from
from ..checkpoint.load import TrainedModel
from ..core.config import check_ranks
from ..core.distill_config import DistillConfig, RoleConfig
from ..core.update_cycle import Phase
from ..cost.operations import distillation_flops
from ..cost.passes import step_probabilities
from ..cost.role_bytes import RoleBytes, planned_roles
from ..data.batches import Batch
from ..data.distill_draws import DistillDraws
from ..engine import zero
from ..engine.ema import Ema
from ..losses.dmd import matching_loss, matching_weight
from ..losses.flow_matching import clean_estimate, flow_matching_loss, interpolate, noise_estimate
from ..losses.gan import adversarial_loss, discriminator_loss
from ..losses.guidance import predict_velocity
from .health import StepResult
from .learning_rate import learning_rate
from .meter import Meter
from .pretrain import configure_model
from .previews import Previews
from .teacher import Teacher

COLLAPSED_SPREAD = 0.3  # of the data's spread
DISCRIMINATOR_WON = 0.05  # hinge loss, which is 2 for a discriminator that guesses
ROLE_PHASES: dict[str, tuple[Phase, ...]] = {
    "student": (Phase.WARM_START, Phase.STUDENT),
    "fake": (Phase.FAKE_WARM_UP, Phase.FAKE),
    "discriminator": (Phase.DISCRIMINATOR,),
}


class Distillation:
    """The roles, their updates and their metrics."""

    bar_metrics: tuple[str, ...] = ("dm", "adversarial", "fake", "discriminator")

    def __init__(
        self,
        config: DistillConfig,
        teacher: AudioX,
        world: zero.World,
        ops: Ops | None = None,
        initial: InitialWeights | None = None,
    ) -> None:
        """Student and fake model start with copies of `teacher`, which is frozen; the student with `initial`, if these
        are given."""
        self.config, self.world, self.cycle, self.sampling = config, world, config.cycle, teacher.sampling
        self.total = self.cycle.total_updates(config.training.steps)
        self.times = sampling_timesteps(config.sampling)[:-1]
        self.accumulation = check_ranks(config.training, world.ranks)
        torch.manual_seed(config.training.seed)
        self.engines = {"discriminator": self._engine("discriminator", DiscriminatorHead(config.model.backbone.width))}
        self.init_record: InitRecord | None = None
        for name in ("student", "fake"):
            model = copy.deepcopy(teacher)
            if name == "student" and initial:
                self.init_record = begin_from(model, initial, config.init)
            self.engines[name] = self._engine(name, configure_model(model, config.training, ops))
        precise = configure_model(teacher, replace(config.training, fp8=False), ops)
        frozen = zero.FrozenModel(precise, config.teacher.precision, config.teacher.sharded, world.device)
        self.ema = Ema(config.ema, self.engines["student"].shards())
        self.roles = {
            name: TrainedModel(e, self.ema if name == "student" else None) for name, e in self.engines.items()
        }
        d = config.distillation
        self.teacher = Teacher(
            frozen, build_text_encoder(config.model.text), d.teacher_guidance, d.discriminator_blocks
        )
        self.draws = DistillDraws(config.training.seed, world.device)
        self.meter = Meter()
        self.sample_losses: list[Tensor] = []  # of the current update, one (B,) per micro-batch
        self.previews = Previews(config)
        self.teacher_previews: dict[str, Tensor] = {}  # sampled once, because the teacher does not change

    def _engine(self, name: str, model: nn.Module) -> zero.Engine:
        training, role = self.config.training, self._role(name)
        return zero.Engine(
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
        phase = self.cycle.phase(update)
        name = next(name for name, phases in ROLE_PHASES.items() if phase in phases)
        engine, rate = self.engines[name], self._rate(name, phase, update)
        loss = {
            Phase.WARM_START: self._warm_start,
            Phase.FAKE_WARM_UP: self._fake,
            Phase.STUDENT: self._student,
            Phase.FAKE: self._fake,
            Phase.DISCRIMINATOR: self._discriminator,
        }[phase]
        applied, self.sample_losses = False, []
        for micro in batch.split(self.config.training.micro_batch):
            engine.backward(loss(update, micro.to(self.world.device)))
            applied = engine.step(rate)
        if applied and name == "student":
            self.ema.update(engine.shards(), engine.updates())
        flops = distillation_flops(self.config, phase, self._interval(update), batch.conditions.text.shape[1])
        return StepResult(name, applied, {f"{name}_lr": rate}, flops, torch.cat(self.sample_losses))

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
        planned = planned_roles(self.config, sizes["student"], sizes["discriminator"])
        where = self.world.rank, self.world.ranks, self.accumulation > 1
        return {role.name: role.bytes(*where) for role in planned}

    def bytes(self) -> dict[str, RoleBytes]:
        """The bytes that each role's tensors take on this rank, counted."""
        roles = {name: role.engine.bytes(role.ema.values if role.ema else ()) for name, role in self.roles.items()}
        return roles | {"teacher": self.teacher.frozen.bytes()}

    def metrics(self) -> dict[str, float]:
        """Means since the last call, and each role's last gradient norm and current bytes on this rank. All ranks call
        this."""
        values = self.meter.read()
        if "adversarial" in values:
            share = self.config.distillation.adversarial_weight * values["adversarial_gradient"]
            values["gradient_ratio"] = share / max(values["dm_gradient"], 1e-12)
        norms = {f"grad_norm/{name}": engine.gradient_norm() for name, engine in self.engines.items()}
        values |= {name: norm for name, norm in norms.items() if math.isfinite(norm)}  # nan before its first update
        return values | {f"bytes/{name}": float(counted.total) for name, counted in self.bytes().items()}

    def warnings(self, values: dict[str, float]) -> list[str]:
        """Warns of a collapsed student and of a discriminator that has won. Raises KeyError where the student was
        trained and a value that is needed is missing."""
        messages = []
        watched = {"distance": "like one another", "deviation": "silent or flat"} if "dm" in values else {}
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
        engine = self.engines["student"]
        with engine.swapped_weights(self.ema.values) as model:
            student = self.previews.sample(model, own, device, engine.dtype)
        kinds = self.teacher_previews | {f"student {own.steps}": student}
        latents = torch.cat(list(kinds.values()))
        names = [f"{name}/{kind}" for kind in kinds for name in self.previews.names]
        return names, self.previews.codec.decode(latents)

    def _role(self, name: str) -> RoleConfig:
        role: RoleConfig = getattr(self.config, name)
        return role

    def _rate(self, name: str, phase: Phase, update: int) -> float:
        role, own = self._role(name), self.config.warm_start.lr
        lr = own if phase is Phase.WARM_START and own else role.optimizer.lr
        turn = self.cycle.count(ROLE_PHASES[name], update)
        return learning_rate(role.schedule, lr, turn, self.cycle.count(ROLE_PHASES[name], self.total))

    # The losses of one micro-batch. Each is a scalar whose gradient reaches one role.

    def _warm_start(self, update: int, batch: Batch) -> Tensor:
        """Regression on the endpoint of the teacher's guided ODE, at one of the student's levels. Its input is the
        endpoint, noised with the noise it came from; below the first level with fresh noise, unless the student samples
        by Euler's method. With `warm_start.rollout` its input is where the student's own steps lead from that noise."""
        warm, k = self.config.warm_start, self._interval(update)
        noise = self.draws.rollout(update, batch, k)
        if batch.noise is None:
            endpoint = self.teacher.endpoint(batch, noise[0], shifted_timesteps(warm.ode_steps, warm.ode_shift))
        else:
            endpoint, noise[0] = batch.latents, batch.noise
        t = self._level(k, batch)
        if warm.rollout:
            with torch.no_grad():
                own = noise_estimate(self._rollout(noise, batch), endpoint, t)
        else:
            own = noise[0 if self.config.sampling.sampler == "euler" else k]
        v = self._trained("student", interpolate(endpoint, own, t), t, batch)
        losses = flow_matching_loss(v, endpoint, own)
        self._add_losses("warm_start", losses)
        return losses.mean()

    def _student(self, update: int, batch: Batch) -> Tensor:
        """Eq. 15, as a product whose gradient at ẑ_0 is the objective's. So the student's graph stays apart from those
        of teacher, fake model and discriminator, whose weights get no gradient."""
        k = self._interval(update)
        with torch.no_grad():
            z = self._rollout(self.draws.rollout(update, batch, k), batch)
        t = self._level(k, batch)
        estimate = restore_given(clean_estimate(z, self._trained("student", z, t, batch).float(), t), batch)
        leaf = estimate.detach().requires_grad_()
        direction = self._matching(update, batch, leaf)
        if self.config.distillation.adversarial_weight:
            direction = direction + self.config.distillation.adversarial_weight * self._adversarial(update, batch, leaf)
        self._watch(estimate.detach(), batch)
        return (estimate * direction).sum()

    def _matching(self, update: int, batch: Batch, leaf: Tensor) -> Tensor:
        """Gradient at ẑ_0 of the mean distribution-matching loss: (B, L, C)."""
        settings = self.config.distillation
        noise, tau = self.draws.perturbation(update, batch, settings.noise_range)
        z_tau = interpolate(leaf, noise, tau)
        fake = self.engines["fake"]
        with torch.set_grad_enabled(settings.loss == "eq10"):
            v_teacher = self.teacher.velocity(batch.conditions)(z_tau, tau)
        with torch.set_grad_enabled(settings.loss != "dmd"):
            v_fake = predict_velocity(fake.module, fake.dtype, z_tau, tau, batch.conditions)
        losses = matching_loss(settings.loss, leaf, z_tau, tau, v_teacher, v_fake) * matching_weight(
            tau, settings.loss_weight
        )
        (direction,) = torch.autograd.grad(losses.mean(), leaf)
        self._add_losses("dm", losses)
        self.meter.add("dm_gradient", per_sample_grad_norm(direction))
        return direction

    def _adversarial(self, update: int, batch: Batch, leaf: Tensor) -> Tensor:
        """Gradient at ẑ_0 of the mean adversarial loss: (B, L, C)."""
        noise, t = self.draws.critic(update, batch, self.config.distillation.discriminator_noise_range)
        engine = self.engines["discriminator"]
        features = self.teacher.features(interpolate(leaf, noise[0], t), t, batch.conditions)
        losses = adversarial_loss(engine.module(features.to(engine.dtype)))
        (direction,) = torch.autograd.grad(losses.mean(), leaf)
        self.meter.add("adversarial", losses)
        self.sample_losses[-1] = self.sample_losses[-1] + losses.detach()
        self.meter.add("adversarial_gradient", per_sample_grad_norm(direction))
        return direction

    def _fake(self, update: int, batch: Batch) -> Tensor:
        """Eq. 12 on the student's samples."""
        z0 = self._sample(update, batch)
        z1, tau = self.draws.perturbation(update, batch, self.config.distillation.noise_range)
        losses = flow_matching_loss(self._trained("fake", interpolate(z0, z1, tau), tau, batch), z0, z1)
        self._add_losses("fake", losses)
        return losses.mean()

    def _discriminator(self, update: int, batch: Batch) -> Tensor:
        """Eq. 13: real latents against the student's samples. Each pair has one condition and one noise level."""
        pair = batch.latents, self._sample(update, batch)
        noise, t = self.draws.critic(update, batch, self.config.distillation.discriminator_noise_range)
        engine = self.engines["discriminator"]
        with torch.no_grad():
            noised = [interpolate(z, n, t) for z, n in zip(pair, noise, strict=True)]
            features = [self.teacher.features(z, t, batch.conditions) for z in noised]
        real, sampled = engine.engine(torch.cat(features).to(engine.dtype)).float().chunk(2)
        losses = discriminator_loss(real, sampled)
        self._add_losses("discriminator", losses)
        self.meter.add("score_real", real.mean(1))
        self.meter.add("score_sample", sampled.mean(1))
        return losses.mean()

    # The student's samples.

    def _interval(self, update: int) -> int:
        """The sampling step of the student that an update trains."""
        return self.draws.interval(update, step_probabilities(self.config, self.cycle.phase(update)))

    def _level(self, k: int, batch: Batch) -> Tensor:
        return torch.full((len(batch),), self.times[k], device=self.world.device)

    def _rollout(self, noise: Tensor, batch: Batch) -> Tensor:
        """z at the student's step k, by the sampler's steps before it, from noise (k + 1, B, L, C). Each step denoises,
        then adds the noise of the next level: for Euler's method the noise that was in z, otherwise fresh noise."""
        z = noise[0]
        for i, fresh in enumerate(noise[1:]):
            t = self._level(i, batch)
            clean = self._denoised(z, t, batch)
            next_noise = noise_estimate(z, clean, t) if self.config.sampling.sampler == "euler" else fresh
            z = interpolate(clean, next_noise, self._level(i + 1, batch))
        return z

    @torch.no_grad()
    def _sample(self, update: int, batch: Batch) -> Tensor:
        """ẑ_0 of the student, without a gradient."""
        k = self._interval(update)
        return self._denoised(self._rollout(self.draws.rollout(update, batch, k), batch), self._level(k, batch), batch)

    def _denoised(self, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        engine = self.engines["student"]
        return restore_given(
            clean_estimate(z, predict_velocity(engine.module, engine.dtype, z, t, batch.conditions).float(), t), batch
        )

    def _trained(self, name: str, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The velocity of the role that is trained in this update."""
        engine = self.engines[name]
        return predict_velocity(engine.engine, engine.dtype, z, t, batch.conditions)

    def _add_losses(self, name: str, losses: Tensor) -> None:
        self.meter.add(name, losses)
        self.sample_losses.append(losses.detach())

    def _watch(self, estimate: Tensor, batch: Batch) -> None:
        """Records the spread within samples and between neighbours, and the same of the data."""
        for name, z in (("samples", estimate), ("data", batch.latents)):
            self.meter.add(f"deviation_{name}", z.flatten(1).std(1))
            if len(z) > 1:
                self.meter.add(f"distance_{name}", (z - z.roll(1, 0)).flatten(1).square().mean(1).sqrt())


def restore_given(clean: Tensor, batch: Batch) -> Tensor:
    """A clean estimate (B, L, C) with the given latents put back, as a sampler does."""
    return torch.where(batch.given_mask.unsqueeze(-1) > 0, batch.latents, clean)


def per_sample_grad_norm(gradient: Tensor) -> Tensor:
    """Each sample's gradient norm (B,), from the gradient (B, L, C) of a mean over the samples."""
    return gradient.flatten(1).norm(dim=1) * len(gradient)

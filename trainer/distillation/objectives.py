"""The losses of a distillation (section V), each of one micro-batch: a scalar whose gradient reaches one role.

B batch, L latent frames, C latent channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...models.sampler import sampling_timesteps, shifted_timesteps
from ..core.distill_config import DistillConfig
from ..core.noise_levels import NoiseLevels
from ..core.update_cycle import Phase
from ..cost.passes import step_probabilities
from ..data.batches import Batch
from ..data.distill_draws import DistillDraws
from ..engine import zero
from ..engine.meter import Meter
from ..losses.dmd import dmd_loss, matching_loss, matching_weight
from ..losses.flow_matching import clean_estimate, flow_matching_loss, interpolate, noise_estimate, velocity_loss
from ..losses.gan import adversarial_loss, approximate_r1_loss, contrastive_loss, discriminator_loss
from ..losses.guidance import predict_velocity
from .teacher import Teacher

SMALLEST_NORM = 1e-12  # of a gradient, by which another is divided


class Objectives:
    """The losses of all phases, and the values that are watched while they are computed."""

    def __init__(
        self, config: DistillConfig, engines: Mapping[str, zero.Engine], teacher: Teacher, device: torch.device
    ) -> None:
        self.config, self.cycle, self.engines, self.teacher = config, config.cycle, engines, teacher
        self.times, warm = sampling_timesteps(config.sampling)[:-1], config.warm_start
        self.ode_times = [shifted_timesteps(warm.ode_steps, warm.ode_shift, t) for t in self.times]
        self.draws, self.device = DistillDraws(config.training.seed, device), device
        self.meter = Meter()
        self.sample_losses: list[Tensor] = []  # of the current update, one (B,) per micro-batch

    def loss(self, update: int, batch: Batch) -> Tensor:
        losses = {
            Phase.WARM_START: self._warm_start,
            Phase.FAKE_WARM_UP: self._fake,
            Phase.DISCRIMINATOR_WARM_UP: self._discriminator,
            Phase.STUDENT: self._student,
            Phase.FAKE: self._fake,
            Phase.DISCRIMINATOR: self._discriminator,
        }
        return losses[self.cycle.phase(update)](update, batch)

    def student_step(self, update: int) -> int:
        """The sampling step of the student that an update is about."""
        return self.draws.interval(update, step_probabilities(self.config, self.cycle.phase(update)))

    def _warm_start(self, update: int, batch: Batch) -> Tensor:
        """Regression at one of the student's steps, from where its own steps lead. For endpoints without
        `warm_start.rollout` the input is the endpoint, noised with the noise that it came from."""
        k = self.student_step(update)
        noise, t = self.draws.rollout(update, batch, k), self._level(k, batch)
        if batch.noise is not None:
            noise[0] = batch.noise
        with torch.no_grad():
            if self.config.targets[k] == "endpoint" and not self.config.warm_start.rollout:
                endpoint = self._endpoint(noise[0], batch)
                z, target = interpolate(endpoint, noise[0], t), noise[0] - endpoint
            else:
                z = self._rollout(noise, batch)
                target = self._target(k, z, noise[0], batch)
        losses = velocity_loss(self._trained("student", z, t, batch), target)
        self._add_losses("warm_start", losses)
        return losses.mean()

    @torch.no_grad()
    def _target(self, k: int, z: Tensor, first_noise: Tensor, batch: Batch) -> Tensor:
        """The velocity (B, L, C) that the student regresses on at z, its own input at step k."""
        kind, t = self.config.targets[k], self._level(k, batch)
        if kind == "velocity":
            return self.teacher.velocity_at(z, self.times[k], batch.conditions)
        ode = kind == "ode"
        clean = self.teacher.endpoint(batch, z, self.ode_times[k]) if ode else self._endpoint(first_noise, batch)
        return noise_estimate(z, clean, t) - clean

    def _endpoint(self, noise: Tensor, batch: Batch) -> Tensor:
        """The endpoint of the teacher's ODE from a sample's first noise, which a pair has already."""
        return batch.latents if batch.noise is not None else self.teacher.endpoint(batch, noise, self.ode_times[0])

    def _student(self, update: int, batch: Batch) -> Tensor:
        """Eq. 15, as a product whose gradient at ẑ_0 is the objective's. So the student's graph stays apart from those
        of teacher, fake model and discriminator, whose weights get no gradient. With `regression_weight` also the warm
        start's regression."""
        k, settings = self.student_step(update), self.config.distillation
        noise, t = self.draws.rollout(update, batch, k), self._level(k, batch)
        with torch.no_grad():
            z = self._rollout(noise, batch)
        v = self._trained("student", z, t, batch).float()
        estimate = restore_given(clean_estimate(z, v, t), batch)
        leaf = estimate.detach().requires_grad_()
        direction, losses = torch.zeros_like(leaf), torch.zeros_like(t)
        if settings.matching_weight:
            matching, losses = self._matching(update, batch, leaf)
            direction = settings.matching_weight * matching
        if settings.adversarial_weight:
            adversarial, more = self._adversarial(update, batch, leaf)
            weight: float | Tensor = settings.adversarial_weight
            if settings.adversarial_gradient_ratio is not None:
                weight = steered_weight(direction, adversarial, settings.adversarial_gradient_ratio)
                self.meter.add("steered_weight", weight.flatten())
            direction, losses = direction + weight * adversarial, losses + more
        loss = (estimate * direction).sum()
        if settings.regression_weight:
            regression = velocity_loss(v, self._target(k, z, noise[0], batch))
            loss = loss + settings.regression_weight * regression.mean()
            self.meter.add("regression", regression)
            losses = losses + regression.detach()
        self._watch(estimate.detach(), batch)
        self.sample_losses.append(losses)
        return loss

    def _matching(self, update: int, batch: Batch, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient at ẑ_0 (B, L, C) of the mean distribution-matching loss, and the loss (B,)."""
        settings, fake, free = self.config.distillation, self.engines["fake"], free_latents(batch)
        noise, tau = self.draws.perturbation(update, batch, settings.noise_levels)
        z_tau, split = interpolate(leaf, noise, tau), settings.guidance_noise_levels
        teacher = self.teacher.unguided(batch.conditions) if split else self.teacher.velocity(batch.conditions)
        with torch.set_grad_enabled(settings.loss == "eq10"):
            v_teacher = teacher(z_tau, tau)
        with torch.set_grad_enabled(settings.loss != "dmd"):
            v_fake = predict_velocity(fake.module, fake.dtype, z_tau, tau, batch.conditions)
        losses = matching_loss(settings.loss, leaf, z_tau, tau, v_teacher, v_fake, free)
        losses = losses * matching_weight(tau, settings.loss_weight)
        if split:
            more = self._guidance_part(update, batch, leaf, split)
            self.meter.add("dm_guidance", more)
            losses = losses + more
        direction = gradient_at_free(losses, leaf, batch)
        self.meter.add("dm", losses)
        self.meter.add("dm_gradient", per_sample_grad_norm(direction))
        return direction, losses.detach()

    def _guidance_part(self, update: int, batch: Batch, leaf: Tensor, levels: NoiseLevels) -> Tensor:
        """What guidance adds to distribution matching, at noise levels of its own (Decoupled DMD, Liu et al., 2025):
        from the teacher's estimate to its guided one. (B,)"""
        noise, tau = self.draws.guidance(update, batch, levels)
        z_tau = interpolate(leaf, noise, tau)
        with torch.no_grad():
            v_guided, v = self.teacher.guided_and_plain(z_tau, tau, batch.conditions)
        losses = dmd_loss(leaf, z_tau, tau, v_guided, v, free_latents(batch))
        return losses * matching_weight(tau, self.config.distillation.loss_weight)

    def _adversarial(self, update: int, batch: Batch, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient at ẑ_0 (B, L, C) of the mean adversarial loss, and the loss (B,)."""
        noise, t = self.draws.critic(update, batch, self.config.distillation.discriminator_noise_levels)
        engine = self.engines["discriminator"]
        features = self.teacher.features(interpolate(leaf, noise[0], t), t, batch.conditions)
        losses = adversarial_loss(engine.module(features.to(engine.dtype)))
        direction = gradient_at_free(losses, leaf, batch)
        self.meter.add("adversarial", losses)
        self.meter.add("adversarial_gradient", per_sample_grad_norm(direction))
        return direction, losses.detach()

    def _fake(self, update: int, batch: Batch) -> Tensor:
        """Eq. 12 on the student's samples."""
        z0 = self._sample(update, batch)
        z1, tau = self.draws.perturbation(update, batch, self.config.distillation.noise_levels)
        losses = flow_matching_loss(self._trained("fake", interpolate(z0, z1, tau), tau, batch), z0, z1)
        self._add_losses("fake", losses)
        return losses.mean()

    def _discriminator(self, update: int, batch: Batch) -> Tensor:
        """Eq. 13: real latents against the student's samples. Each pair has one condition and one noise level. Further
        scores of the real latents, after noise and under exchanged conditions, are for R1 and the contrastive loss."""
        settings, engine = self.config.distillation, self.engines["discriminator"]
        clean = batch.latents, self._sample(update, batch)
        noise, t = self.draws.critic(update, batch, settings.discriminator_noise_levels)
        real, sampled = (interpolate(z, n, t) for z, n in zip(clean, noise, strict=False))
        inputs = [(real, batch.conditions), (sampled, batch.conditions)]
        if settings.r1_weight:
            inputs.append((real + settings.r1_sigma * noise[2], batch.conditions))
        if settings.contrastive_weight:
            inputs.append((real, batch.conditions.rolled()))
        with torch.no_grad():
            features = [self.teacher.features(z, t, conditions) for z, conditions in inputs]
        scores = list(engine.forward(torch.cat(features).to(engine.dtype)).float().chunk(len(inputs)))
        losses = discriminator_loss(*scores[:2])
        self.meter.add("discriminator", losses)
        self.meter.add("score_real", scores[0].mean(1))
        self.meter.add("score_sample", scores[1].mean(1))
        if settings.contrastive_weight:
            contrastive = contrastive_loss(scores[0], scores.pop())
            self.meter.add("contrastive", contrastive)
            losses = losses + settings.contrastive_weight * contrastive
        if settings.r1_weight:
            r1 = approximate_r1_loss(scores[0], scores.pop())
            self.meter.add("r1", r1)
            losses = losses + settings.r1_weight * r1
        self.sample_losses.append(losses.detach())
        return losses.mean()

    # The student's samples.

    def _level(self, k: int, batch: Batch) -> Tensor:
        return torch.full((len(batch),), self.times[k], device=self.device)

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
        k = self.student_step(update)
        return self._denoised(self._rollout(self.draws.rollout(update, batch, k), batch), self._level(k, batch), batch)

    def _denoised(self, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        engine = self.engines["student"]
        return restore_given(
            clean_estimate(z, predict_velocity(engine.module, engine.dtype, z, t, batch.conditions).float(), t), batch
        )

    def _trained(self, name: str, z: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The velocity of the role that is trained in this update."""
        engine = self.engines[name]
        return predict_velocity(engine.forward, engine.dtype, z, t, batch.conditions)

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


def free_latents(batch: Batch) -> Tensor:
    """(B, L, 1): 1 where a latent is generated, 0 where it is given."""
    return 1 - batch.given_mask.unsqueeze(-1)


def gradient_at_free(losses: Tensor, leaf: Tensor, batch: Batch) -> Tensor:
    """Gradient (B, L, C) at ẑ_0 of the mean of losses (B,); zero where latents are given, which no student moves."""
    (gradient,) = torch.autograd.grad(losses.mean(), leaf)
    return gradient * free_latents(batch)


def steered_weight(matching: Tensor, adversarial: Tensor, ratio: float) -> Tensor:
    """λ_adv of each sample (B, 1, 1), with which the norm of its adversarial gradient (B, L, C) has this ratio to that
    of distribution matching."""
    norms = [direction.flatten(1).norm(dim=1) for direction in (matching, adversarial)]
    return (ratio * norms[0] / norms[1].clamp_min(SMALLEST_NORM))[:, None, None]


def per_sample_grad_norm(gradient: Tensor) -> Tensor:
    """Each sample's gradient norm (B,), from the gradient (B, L, C) of a mean over the samples."""
    return gradient.flatten(1).norm(dim=1) * len(gradient)

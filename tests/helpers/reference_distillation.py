"""A reference for the small model's distillation, written from section V: one process, no engine, no ranks, no
surrogate for the student's gradient."""

import copy
import itertools
from collections.abc import Collection

import numpy as np
import torch

from audiox_trainer.models.discriminator import DiscriminatorHead
from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.trainer.core.distill_config import DistillConfig
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from tests.helpers.distillation_scenarios import teacher
from tests.helpers.scenarios import made_up

TRAINED = {
    "warm_start": "student",
    "student": "student",
    "fake_warm_up": "fake",
    "fake": "fake",
    "discriminator": "discriminator",
}
RANKS, BATCH = 2, 8


class Plain:
    """`rows` are what each update's values should be, `models` what the roles then are, `ema` the student's average by
    name; student and fake model begin as `teacher`, the discriminator's head as `first_head`."""

    def __init__(self, config: DistillConfig, paired: Collection[int] = ()) -> None:
        """`paired` are updates of the warm start that are given pairs."""
        self.config, self.paired, self.settings = config, paired, config.distillation
        self.euler = config.sampling.sampler == "euler"
        self.times = config.sampling.timesteps or [1 - k / config.sampling.steps for k in range(config.sampling.steps)]
        self.teacher = teacher(config).requires_grad_(False)
        self.student, self.fake = (copy.deepcopy(self.teacher).requires_grad_(True) for _ in range(2))
        torch.manual_seed(config.training.seed)
        self.head = DiscriminatorHead(config.model.backbone.width)
        self.first_head = copy.deepcopy(self.head)
        self.models = {"student": self.student, "fake": self.fake, "discriminator": self.head}
        self.optimizers = {name: self.optimizer(name) for name in self.models}
        self.turns = dict.fromkeys(self.models, 0)
        self.ema = {name: p.detach().clone() for name, p in self.student.named_parameters()}
        self.nothing = build_text_encoder(config.model.text)([""])
        student, fake, discriminator = config.updates.counts
        a_round = student * ["student"] + fake * ["fake"] + discriminator * ["discriminator"]
        self.phases = config.warm_start.updates * ["warm_start"] + config.updates.fake_warm_up * ["fake_warm_up"]
        self.phases += config.training.steps // student * a_round
        self.rows = [self.update(u, phase) for u, phase in enumerate(self.phases)]

    def optimizer(self, name):
        how = getattr(self.config, name).optimizer
        return torch.optim.AdamW(
            self.models[name].parameters(), betas=how.betas, eps=how.eps, weight_decay=how.weight_decay
        )

    def rate(self, name, phase):
        role, turn, own = getattr(self.config, name), self.turns[name], self.config.warm_start.lr
        how, turns = role.schedule, sum(TRAINED[phase] == name for phase in self.phases)
        lr = own if own and phase == "warm_start" else role.optimizer.lr
        rate = (1 - how.warmup ** (turn + 1)) * lr * (1 + turn / how.inv_gamma) ** -how.power
        return rate * min(1, (turns - turn) / (how.cooldown * turns)) if how.cooldown else rate

    def update(self, u, phase):
        batch, name = made_up(self.config, u, list(range(BATCH)), u in self.paired), TRAINED[phase]
        shares = self.settings.step_probabilities if phase != "warm_start" else [0.25] * 4
        k = int(sample_rng(0, u, 0, Purpose.INTERVAL).choice(4, p=shares))
        losses = {"warm_start": self.regression, "student": self.matching, "discriminator": self.hinge}
        objective, values = losses.get(phase, self.samples)(u, batch, k)
        optimizer, clip = self.optimizers[name], getattr(self.config, name).optimizer.max_grad_norm
        optimizer.zero_grad()
        parameters = list(self.models[name].parameters())
        for p, g in zip(parameters, torch.autograd.grad(objective, parameters, allow_unused=True), strict=True):
            p.grad = torch.zeros_like(p) if g is None else g
        torch.nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = self.rate(name, phase)
        optimizer.step()
        self.turns[name] += 1
        if name == "student":
            s = self.turns[name] - 1
            decay = min(self.config.ema.decay, (1 + s) / (10 + s))
            for n, p in self.student.named_parameters():
                self.ema[n] = decay * self.ema[n] + (1 - decay) * p.detach()
        return values

    def draws(self, u, batch, purpose, count, low=0.0, high=1.0):
        rngs = [sample_rng(0, u, index, purpose) for index in range(BATCH)]
        level = torch.tensor([rng.uniform(low, high) for rng in rngs], dtype=torch.float32)
        noise = [rng.standard_normal((count, *batch.latents.shape[1:]), dtype=np.float32) for rng in rngs]
        return torch.from_numpy(np.stack(noise, 1)), level[:, None, None]

    def velocity(self, model, z, t, batch, **options):
        return model(z, torch.as_tensor(t).flatten().expand(BATCH), *batch.conditions.tensors(), **options)

    def guided(self, z, t, batch):
        conditions = batch.conditions
        text = torch.zeros_like(conditions.text)
        text[:, :1] = self.nothing[0][:, :1]
        nothing = torch.zeros_like(conditions.video), torch.zeros_like(conditions.audio), text, torch.ones(BATCH).long()
        without = self.teacher(z, torch.as_tensor(t).flatten().expand(BATCH), *nothing)
        return without + self.settings.teacher_guidance * (self.velocity(self.teacher, z, t, batch) - without)

    def estimate(self, z, t, batch):
        clean = z - t * self.velocity(self.student, z, t, batch)
        return torch.where(batch.given_mask[:, :, None] > 0, batch.latents, clean)

    def sample(self, u, batch, k):
        """ẑ_0 at step k; only the last step keeps its gradient."""
        noise, _ = self.draws(u, batch, Purpose.ROLLOUT, k + 1)
        return self.estimate(self.rollout(noise, batch), self.times[k], batch)

    @torch.no_grad()
    def rollout(self, noise, batch):
        z, given = noise[0], batch.given_mask[:, :, None] > 0
        for fresh, (t, to) in zip(noise[1:], itertools.pairwise(self.times), strict=False):
            if self.euler:
                z = z + (to - t) * self.velocity(self.student, z, t, batch)
                z = torch.where(given, to * noise[0] + (1 - to) * batch.latents, z)
            else:
                z = to * fresh + (1 - to) * self.estimate(z, t, batch)
        return z

    def score(self, z, t, batch):
        return self.head(self.velocity(self.teacher, z, t, batch, n_blocks=1))

    def endpoint(self, z, batch):
        noise, given = z, batch.given_mask[:, :, None] > 0
        with torch.no_grad():
            for t, to in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
                z = z + (to - t) * self.guided(z, t, batch)
                z = torch.where(given, to * noise + (1 - to) * batch.latents, z)
        return z

    def regression(self, u, batch, k):
        noise, _ = self.draws(u, batch, Purpose.ROLLOUT, k + 1)
        if batch.noise is None:
            z = self.endpoint(noise[0], batch)
        else:
            z, noise[0] = batch.latents, batch.noise
        t = self.times[k]
        own = noise[0 if self.euler else k]
        at = self.rollout(noise, batch) if self.config.warm_start.rollout else t * own + (1 - t) * z
        v = self.velocity(self.student, at, t, batch)
        loss = (v - (at - z) / t).square().mean()
        return loss, {"warm_start": loss.item()}

    def matching(self, u, batch, k):
        z0 = self.sample(u, batch, k)
        noise, tau = self.draws(u, batch, Purpose.PERTURBATION, 1, *self.settings.noise_range)
        z_tau = tau * noise[0] + (1 - tau) * z0
        v_real, v_fake = self.guided(z_tau, tau, batch), self.velocity(self.fake, z_tau, tau, batch)
        if self.settings.loss == "dmd":
            real, fake = ((z_tau - tau * v).detach() for v in (v_real, v_fake))
            g = (fake - real) / (z0 - real).abs().mean((1, 2), keepdim=True)
            errors = 0.5 * (z0 - (z0 - g).detach()).square()
        else:
            errors = (v_fake - (v_real if self.settings.loss == "eq10" else v_real.detach())).square()
        matching = (errors * ((1 - tau) ** 2 / tau if self.settings.loss_weight == "kl" else 1)).mean()
        noise, t = self.draws(u, batch, Purpose.CRITIC, 2, *self.settings.discriminator_noise_range)
        adversarial = -self.score(t * noise[0] + (1 - t) * z0, t, batch).mean()
        values = {"dm": matching.item(), "adversarial": adversarial.item()}
        for name, loss in (("dm", matching), ("adversarial", adversarial)):
            (gradient,) = torch.autograd.grad(loss, z0, retain_graph=True)
            values[f"{name}_gradient"] = BATCH * gradient.flatten(1).norm(dim=1).mean().item()
        share = self.settings.adversarial_weight
        values["gradient_ratio"] = share * values["adversarial_gradient"] / values["dm_gradient"]
        return matching + share * adversarial, values | self.spread(z0.detach(), batch.latents)

    def spread(self, samples, data):
        """Standard deviation within samples, and root mean square of the difference of neighbours in a micro-batch."""
        size = self.config.training.micro_batch
        shares = [torch.arange(rank, BATCH, RANKS).split(size) for rank in range(RANKS)]
        values = {}
        for name, z in (("samples", samples), ("data", data)):
            values[f"deviation_{name}"] = torch.stack([one.std() for one in z]).mean().item()
            pairs = [
                (z[a], z[b]) for share in shares for part in share for a, b in zip(part, part.roll(1), strict=True)
            ]
            values[f"distance_{name}"] = float(np.mean([(a - b).square().mean().sqrt().item() for a, b in pairs]))
        return values

    def samples(self, u, batch, k):
        z0 = self.sample(u, batch, k).detach()
        noise, tau = self.draws(u, batch, Purpose.PERTURBATION, 1, *self.settings.noise_range)
        v = self.velocity(self.fake, tau * noise[0] + (1 - tau) * z0, tau, batch)
        loss = (v - (noise[0] - z0)).square().mean()
        return loss, {"fake": loss.item()}

    def hinge(self, u, batch, k):
        z0 = self.sample(u, batch, k).detach()
        noise, t = self.draws(u, batch, Purpose.CRITIC, 2, *self.settings.discriminator_noise_range)
        real = self.score(t * noise[0] + (1 - t) * batch.latents, t, batch)
        fake = self.score(t * noise[1] + (1 - t) * z0, t, batch)
        loss = (torch.relu(1 - real) + torch.relu(1 + fake)).mean()
        scores = {"score_real": real.mean().item(), "score_sample": fake.mean().item()}
        return loss, scores | {"discriminator": loss.item()}

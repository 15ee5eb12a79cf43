"""A reference for the small model's distillation, written from section V: one process, no engine, no ranks, no
surrogate for the student's gradient."""

import copy
import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch

from audiox_trainer.models.discriminator import DiscriminatorHead
from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.models.lora import add_adapters
from audiox_trainer.trainer.core.distill_config import DistillConfig
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from tests.helpers.distillation_scenarios import teacher
from tests.helpers.scenarios import made_up

TRAINED = {
    "warm_start": "student",
    "student": "student",
    "fake_warm_up": "fake",
    "discriminator_warm_up": "discriminator",
    "fake": "fake",
    "discriminator": "discriminator",
}
BATCH = 8


class Plain:
    """`rows` are what each update's values should be, `models` what the roles then are, `ema` the student's average;
    `starts` is what each role trains as it begins."""

    def __init__(self, config: DistillConfig, paired: Collection[int] = (), ranks: int = 2) -> None:
        """`paired` are updates of the warm start that are given pairs. Only neighbours depend on the ranks."""
        self.ranks, self.config, self.paired, self.settings = ranks, config, paired, config.distillation
        self.euler = config.sampling.sampler == "euler"
        self.times = config.sampling.timesteps or [1 - k / config.sampling.steps for k in range(config.sampling.steps)]
        self.teacher = teacher(config).requires_grad_(False)
        self.student, self.fake = (copy.deepcopy(self.teacher).requires_grad_(True) for _ in range(2))
        self.loras = {"student": config.student.lora, "fake": config.fake.lora, "discriminator": None}
        torch.manual_seed(config.training.seed)
        heads, width = self.settings.discriminator_heads, config.model.backbone.width
        self.head = DiscriminatorHead(width)
        if heads > 1:
            several = [self.head, *(DiscriminatorHead(width) for _ in range(heads - 1))]
            self.head = torch.nn.ModuleDict({"heads": torch.nn.ModuleList(several)})
        self.models = {"student": self.student, "fake": self.fake, "discriminator": self.head}
        for name, lora in self.loras.items():
            if lora:
                add_adapters(self.models[name], lora)
        self.starts = {name: self.copies(name) for name in self.models}
        self.optimizers = {name: self.optimizer(name) for name in self.models}
        self.turns = dict.fromkeys(self.models, 0)
        self.ema = self.copies("student")
        self.nothing = build_text_encoder(config.model.text)([""])
        student, fake, discriminator = config.updates.counts
        fake *= self.settings.matching_weight > 0
        discriminator *= self.settings.adversarial_weight > 0
        a_round = student * ["student"] + fake * ["fake"] + discriminator * ["discriminator"]
        self.phases = config.warm_start.updates * ["warm_start"]
        if self.settings.matching_weight:
            self.phases += config.updates.fake_warm_up * ["fake_warm_up"]
        if self.settings.adversarial_weight:
            self.phases += config.updates.discriminator_warm_up * ["discriminator_warm_up"]
        self.phases += config.training.steps // student * a_round
        self.rows = [self.update(u, phase) for u, phase in enumerate(self.phases)]

    def trained(self, name):
        return {n: p for n, p in self.models[name].named_parameters() if p.requires_grad}

    def copies(self, name):
        return {n: p.detach().clone() for n, p in self.trained(name).items()}

    def optimizer(self, name):
        how = getattr(self.config, name).optimizer
        parameters = list(self.trained(name).values())
        return torch.optim.AdamW(parameters, betas=how.betas, eps=how.eps, weight_decay=how.weight_decay)

    def rate(self, name, phase):
        role, warm = getattr(self.config, name), self.config.warm_start
        how, lr = role.schedule, role.optimizer.lr
        own = [p for p in self.phases if TRAINED[p] == name and (p == "warm_start") == (phase == "warm_start")]
        turn, turns = self.turns[name], len(own)
        if phase == "warm_start":
            how, lr = warm.schedule or how, warm.lr or lr
        elif name == "student":
            turn -= self.phases.count("warm_start")
        rate = (1 - how.warmup ** (turn + 1)) * lr * (1 + turn / how.inv_gamma) ** -how.power
        return rate * min(1, (turns - turn) / (how.cooldown * turns)) if how.cooldown else rate

    def shares(self, phase):
        settings = self.settings
        own = {
            "warm_start": self.config.warm_start.step_probabilities or [0.25] * 4,
            "fake": settings.fake_step_probabilities,
            "discriminator": settings.discriminator_step_probabilities,
        }
        return own.get(phase.removesuffix("_warm_up")) or settings.step_probabilities

    def update(self, u, phase):
        batch, name = made_up(self.config, u, list(range(BATCH)), u in self.paired), TRAINED[phase]
        k = int(sample_rng(0, u, 0, Purpose.INTERVAL).choice(4, p=self.shares(phase)))
        losses = {"warm_start": self.regression, "student": self.student_objective}
        losses |= dict.fromkeys(("discriminator", "discriminator_warm_up"), self.hinge)
        objective, values = losses.get(phase, self.samples)(u, batch, k)
        if self.config.warm_start.reset_moments and phase == "student" and phase not in self.phases[:u]:
            self.optimizers[name] = self.optimizer(name)
        optimizer, clip = self.optimizers[name], getattr(self.config, name).optimizer.max_grad_norm
        optimizer.zero_grad()
        parameters = list(self.trained(name).values())
        for p, g in zip(parameters, torch.autograd.grad(objective, parameters, allow_unused=True), strict=True):
            p.grad = torch.zeros_like(p) if g is None else g
        torch.nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = self.rate(name, phase)
        optimizer.step()
        self.turns[name] += 1
        if phase == "student" and (share := self.settings.fake_alignment):
            for p, other in zip(self.fake.parameters(), self.student.parameters(), strict=True):
                p.data = (1 - share) * p.data + share * other.data
        if name == "student":
            s = self.turns[name] - 1
            decay = min(self.config.ema.decay, (1 + s) / (10 + s))
            for n, p in self.trained(name).items():
                self.ema[n] = decay * self.ema[n] + (1 - decay) * p.detach()
        return values

    def draws(self, u, batch, purpose, count, levels=None):
        rngs = [sample_rng(0, u, index, purpose) for index in range(BATCH)]
        low, high = levels.range if levels else (0.0, 1.0)
        if levels is None or (levels.distribution, levels.shift) == ("uniform", 1):
            level = torch.tensor([rng.uniform(low, high) for rng in rngs], dtype=torch.float32)
        else:
            level = self.levels(torch.tensor([rng.random() for rng in rngs], dtype=torch.float64), levels).float()
        noise = [rng.standard_normal((count, *batch.latents.shape[1:]), dtype=np.float32) for rng in rngs]
        return torch.from_numpy(np.stack(noise, 1)), level[:, None, None]

    @staticmethod
    def levels(uniform, how):
        """By the distributions of torch: the ends of the range before the shift, the quantile, then the shift."""
        ends = torch.tensor(how.range, dtype=torch.float64)
        ends = ends / (how.shift - (how.shift - 1) * ends)
        normal = torch.distributions.Normal(*torch.tensor([how.mean, how.std], dtype=torch.float64))
        kinds = {
            "uniform": [torch.distributions.transforms.identity_transform],
            "logit_normal": [torch.distributions.SigmoidTransform()],
            "log_normal": [torch.distributions.ExpTransform()],
        }
        base = torch.distributions.Uniform(*ends) if how.distribution == "uniform" else normal
        drawn = torch.distributions.TransformedDistribution(base, kinds[how.distribution], validate_args=False)
        low, high = (0.0, 1.0) if how.distribution == "uniform" else drawn.cdf(ends)
        t = drawn.icdf(low + (high - low) * uniform)
        return how.shift * t / (1 + (how.shift - 1) * t)

    def velocity(self, model, z, t, batch, **options):
        return model(z, torch.as_tensor(t).flatten().expand(BATCH), *batch.conditions.tensors(), **options)

    def guided(self, z, t, batch):
        conditions = batch.conditions
        text = torch.zeros_like(conditions.text)
        text[:, :1] = self.nothing[0][:, :1]
        nothing = torch.zeros_like(conditions.video), torch.zeros_like(conditions.audio), text, torch.ones(BATCH).long()
        without = self.teacher(z, torch.as_tensor(t).flatten().expand(BATCH), *nothing)
        t = torch.as_tensor(t).flatten().expand(BATCH)
        low, high = self.settings.guidance_interval
        scales = [self.settings.teacher_guidance if low <= one <= high else 1 for one in t.tolist()]
        scale = torch.tensor(scales)[:, None, None]
        return without + scale * (self.velocity(self.teacher, z, t, batch) - without)

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
        """(B, tokens), of every head on the teacher after its own number of blocks."""
        blocks, heads = self.settings.discriminator_blocks, self.settings.discriminator_heads
        depths = [round(blocks * (i + 1) / heads) for i in range(heads)]
        several = self.head["heads"] if heads > 1 else [self.head]
        pairs = zip(several, depths, strict=True)
        return torch.cat([head(self.velocity(self.teacher, z, t, batch, n_blocks=n)) for head, n in pairs], 1)

    def endpoint(self, z, t, noise, batch):
        """Euler steps from level t, which are equal before the shift."""
        warm, given = self.config.warm_start, batch.given_mask[:, :, None] > 0
        u = np.linspace(t / (warm.ode_shift - (warm.ode_shift - 1) * t), 0, warm.ode_steps + 1)
        levels = (warm.ode_shift * u / (1 + (warm.ode_shift - 1) * u)).astype(np.float32).tolist()
        with torch.no_grad():
            for t, to in itertools.pairwise(levels):
                z = z + (to - t) * self.guided(z, t, batch)
                z = torch.where(given, to * noise + (1 - to) * batch.latents, z)
        return z

    def target(self, at, noise, k, batch):
        """The velocity that the student regresses on at its own input of step k."""
        t = self.times[k]
        kinds = self.config.warm_start.targets or (4 * ["endpoint"] if self.euler else 3 * ["velocity"] + ["ode"])
        if kinds[k] == "velocity":
            return self.guided(at, t, batch).detach()
        if kinds[k] == "ode":
            return (at - self.endpoint(at, t, noise[0 if self.euler else k], batch)) / t
        end = batch.latents if batch.noise is not None else self.endpoint(noise[0], 1.0, noise[0], batch)
        return (at - end) / t

    def regression(self, u, batch, k):
        noise, _ = self.draws(u, batch, Purpose.ROLLOUT, k + 1)
        if batch.noise is not None:
            noise[0] = batch.noise
        t, warm = self.times[k], self.config.warm_start
        at = self.rollout(noise, batch)
        if self.euler and (not warm.targets or warm.targets[k] == "endpoint") and not warm.rollout:
            end = batch.latents if batch.noise is not None else self.endpoint(noise[0], 1.0, noise[0], batch)
            at = t * noise[0] + (1 - t) * end
        loss = (self.velocity(self.student, at, t, batch) - self.target(at, noise, k, batch)).square().mean()
        return loss, {"warm_start": loss.item()}

    def dmd(self, z0, z_tau, tau, v_real, v_fake, batch):
        """DMD's errors, of which the gradient at what is given is nothing."""
        free = (batch.given_mask == 0)[:, :, None].expand_as(z0)
        real, fake = ((z_tau - tau * v).detach() for v in (v_real, v_fake))
        size = [(z0[i] - real[i])[free[i]].abs().mean().clamp_min(1e-4) for i in range(BATCH)]
        g = (fake - real) / torch.stack(size)[:, None, None]
        return 0.5 * (z0 - (z0 - g).detach()).square() * free

    def weighted(self, errors, tau):
        return (errors * ((1 - tau) ** 2 / tau if self.settings.loss_weight == "kl" else 1)).mean()

    def distribution_matching(self, u, batch, z0):
        """The loss and what is watched of it."""
        settings, split = self.settings, self.settings.guidance_noise_levels
        noise, tau = self.draws(u, batch, Purpose.PERTURBATION, 1, settings.noise_levels)
        z_tau = tau * noise[0] + (1 - tau) * z0
        v_fake = self.velocity(self.fake, z_tau, tau, batch)
        v_real = self.velocity(self.teacher, z_tau, tau, batch) if split else self.guided(z_tau, tau, batch)
        if settings.loss == "dmd":
            errors = self.dmd(z0, z_tau, tau, v_real, v_fake, batch)
        else:
            errors = (v_fake - (v_real if settings.loss == "eq10" else v_real.detach())).square()
        loss, values = self.weighted(errors, tau), {}
        if split:
            noise, tau = self.draws(u, batch, Purpose.GUIDANCE, 1, split)
            z_tau = tau * noise[0] + (1 - tau) * z0
            guided, plain = self.guided(z_tau, tau, batch), self.velocity(self.teacher, z_tau, tau, batch)
            more = self.weighted(self.dmd(z0, z_tau, tau, guided, plain, batch), tau)
            loss, values = loss + more, {"dm_guidance": more.item()}
        return loss, values | {"dm": loss.item()}

    def student_objective(self, u, batch, k):
        settings, t = self.settings, self.times[k]
        noise, _ = self.draws(u, batch, Purpose.ROLLOUT, k + 1)
        at = self.rollout(noise, batch)
        v = self.velocity(self.student, at, t, batch)
        z0 = torch.where(batch.given_mask[:, :, None] > 0, batch.latents, at - t * v)
        total, values, gradients = 0, self.spread(z0.detach(), batch.latents), {}

        def norms(name, loss):
            """Each sample's, of the gradient at what is not given."""
            (gradient,) = torch.autograd.grad(loss, z0, retain_graph=True)
            gradient = gradient * (batch.given_mask == 0)[:, :, None]
            gradients[name] = BATCH * gradient.flatten(1).norm(dim=1)
            values[f"{name}_gradient"] = gradients[name].mean().item()

        if settings.matching_weight:
            matching, watched = self.distribution_matching(u, batch, z0)
            values |= watched
            norms("dm", matching)
            total = settings.matching_weight * matching
        if settings.adversarial_weight:
            noise_d, t_d = self.draws(u, batch, Purpose.CRITIC, 2, settings.discriminator_noise_levels)
            adversarial = -self.score(t_d * noise_d[0] + (1 - t_d) * z0, t_d, batch).mean(1)
            values["adversarial"] = adversarial.mean().item()
            norms("adversarial", adversarial.mean())
            weight, ratio = settings.adversarial_weight, settings.adversarial_gradient_ratio
            if ratio:
                weight = ratio * settings.matching_weight * gradients["dm"] / gradients["adversarial"].clamp_min(1e-9)
                values |= {"steered_weight": weight.mean().item(), "gradient_ratio": ratio}
            elif settings.matching_weight:
                share = weight * values["adversarial_gradient"]
                values["gradient_ratio"] = share / (settings.matching_weight * values["dm_gradient"])
            total = total + (weight * adversarial).mean()
        if settings.regression_weight:
            regression = (v - self.target(at, noise, k, batch)).square().mean()
            values["regression"] = regression.item()
            total = total + settings.regression_weight * regression
        return total, values

    def spread(self, samples, data):
        """Standard deviation within samples, and root mean square of the difference of neighbours in a micro-batch."""
        size = self.config.training.micro_batch
        shares = [torch.arange(rank, BATCH, self.ranks).split(size) for rank in range(self.ranks)]
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
        noise, tau = self.draws(u, batch, Purpose.PERTURBATION, 1, self.settings.noise_levels)
        v = self.velocity(self.fake, tau * noise[0] + (1 - tau) * z0, tau, batch)
        loss = (v - (noise[0] - z0)).square().mean()
        return loss, {"fake": loss.item()}

    def hinge(self, u, batch, k):
        settings, z0 = self.settings, self.sample(u, batch, k).detach()
        noise, t = self.draws(u, batch, Purpose.CRITIC, 3, settings.discriminator_noise_levels)
        z = t * noise[0] + (1 - t) * batch.latents
        real, fake = self.score(z, t, batch), self.score(t * noise[1] + (1 - t) * z0, t, batch)
        loss = (torch.relu(1 - real) + torch.relu(1 + fake)).mean()
        values = {"score_real": real.mean().item(), "score_sample": fake.mean().item(), "discriminator": loss.item()}
        if settings.r1_weight:
            r1 = (real - self.score(z + settings.r1_sigma * noise[2], t, batch)).square().mean()
            loss, values["r1"] = loss + settings.r1_weight * r1, r1.item()
        if settings.contrastive_weight:
            size, whole = self.config.training.micro_batch, torch.arange(BATCH)
            before = torch.empty(BATCH, dtype=torch.int64)
            for rank in range(self.ranks):
                for part in whole[rank :: self.ranks].split(size):
                    before[part] = part.roll(1)
            others = type(batch.conditions)(*(x[before] for x in batch.conditions.tensors()))
            wrong = self.score(z, t, replace(batch, conditions=others))
            contrastive = -torch.log(torch.sigmoid(real - wrong)).mean()
            loss, values["contrastive"] = loss + settings.contrastive_weight * contrastive, contrastive.item()
        return loss, values

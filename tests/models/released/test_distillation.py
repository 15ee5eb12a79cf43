"""A step of the released distillation: losses, and gradients at the student's sample and at weights of every role."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from audiox_trainer.models.released.discriminator import ReleasedDiscriminator
from tests.helpers.released_fixtures import BOUND, GOLDEN, LEVELS, features, golden_network, swap_axes


def noised(t: torch.Tensor, z1: torch.Tensor, z0: torch.Tensor) -> torch.Tensor:
    return t[:, None, None] * z1 + (1 - t[:, None, None]) * z0


class Step:
    """The four roles, and what the fixture gives."""

    def __init__(self) -> None:
        self.given = load_file(GOLDEN / "distill.safetensors")
        self.noise = {name[9:]: swap_axes(x) for name, x in self.given.items() if name.startswith("in.noise.")}
        arguments = features(load_file(GOLDEN / "inputs.safetensors"), "mixed")
        self.roles, self.conditions = {}, {}
        for name, scale in (("student", 0.8), ("fake", 0.9), ("teacher", 1.0)):
            role = golden_network()
            role.backbone.transformer.project_out.weight.data *= scale
            role.requires_grad_(name != "teacher")
            self.roles[name], self.conditions[name] = role, role.fuse(*arguments)
        self.discriminator = ReleasedDiscriminator(2, 64, 16)
        heads = {name[3:]: x for name, x in self.given.items() if name.startswith("in.heads.")}
        self.discriminator.load_state_dict(heads)

    def velocity(self, role: str, z: torch.Tensor, t: torch.Tensor, n_blocks: int | None = None) -> torch.Tensor:
        return self.roles[role].backbone(z, t, self.conditions[role], n_blocks)

    def sample(self) -> torch.Tensor:
        """The student's, of its third step, which alone has a gradient."""
        z = self.noise["z1"]
        for k, now in enumerate(LEVELS[:3]):
            with torch.set_grad_enabled(k == 2):
                x0 = z - now * self.velocity("student", z, torch.full((2,), now))
                if k < 2:
                    z = (LEVELS[k + 1] * self.noise[f"rollout{k + 1}"] + (1 - LEVELS[k + 1]) * x0).detach()
        return x0

    def scores(self, latents: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        z = noised(t, eps, latents)
        return self.discriminator(self.velocity("teacher", z, t, 2))

    def errors(self, found: dict[str, torch.Tensor]) -> dict[str, float]:
        """Those above the bound."""
        errors = {}
        for name, value in found.items():
            expected = self.given[f"out.{name}"]
            errors[name] = ((value.detach() - expected).abs().max() / expected.abs().max()).item()
        return {name: error for name, error in errors.items() if not error <= BOUND}


@pytest.fixture
def step() -> Step:
    return Step()


def test_the_student_matches_the_teacher_and_convinces_the_discriminator(step):
    given, noise, student = step.given, step.noise, step.roles["student"]
    x0, tau = step.sample(), given["in.t_dmd"]
    z_tau = noised(tau, noise["dmd"], x0)
    with torch.no_grad():
        teacher = step.roles["teacher"]
        v, v_null = step.velocity("teacher", z_tau, tau), teacher.backbone(z_tau, tau, teacher.null_condition(2))
        x_teacher = z_tau - tau[:, None, None] * (v_null + 6 * (v - v_null))
        x_fake = z_tau - tau[:, None, None] * step.velocity("fake", z_tau, tau)
        size = (z_tau - x_teacher).abs().mean((1, 2), keepdim=True) + 1e-8
        target = x0 - (x_fake - x_teacher) / size
    loss_dmd = 0.5 * F.mse_loss(x0, target)
    loss_gan = -step.scores(x0, given["in.t_gan_g"], noise["gan_g"]).mean()
    x0.retain_grad()
    (loss_dmd + loss_gan).backward()
    gates = [getattr(student.maf_block, f"bypass_gate_{name}").grad for name in "vta"]
    found = {
        "student.x0": swap_axes(x0),
        "student.loss_dmd": loss_dmd,
        "student.loss_gan": loss_gan,
        "student.x0_grad": swap_axes(x0.grad),
        "student.grad_project_out": student.backbone.transformer.project_out.weight.grad,
        "student.grad_bypass_gates": torch.cat(gates),
    }
    assert step.errors(found) == {}


def test_the_fake_model_learns_the_samples(step):
    t, clean = step.given["in.t_fake"], step.sample().detach()
    loss = F.mse_loss(step.velocity("fake", noised(t, step.noise["fake"], clean), t), step.noise["fake"] - clean)
    loss.backward()
    gradient = step.roles["fake"].backbone.transformer.project_out.weight.grad
    assert step.errors({"fake.loss": loss, "fake.grad_project_out": gradient}) == {}


def test_the_discriminator_tells_them_from_real_latents(step):
    given, noise = step.given, step.noise
    real = step.scores(swap_axes(given["in.real_latents"]), given["in.t_gan_real"], noise["gan_real"])
    generated = step.scores(step.sample().detach(), given["in.t_gan_fake"], noise["gan_fake"])
    loss = F.relu(1 - real).mean() + F.relu(1 + generated).mean()
    loss.backward()
    z = noised(torch.full((2,), 0.3), noise["gan_real"], swap_axes(given["in.real_latents"]))
    first, second = step.velocity("teacher", z, torch.full((2,), 0.3), 2).unbind(1)
    found = {
        "teacher_cut1": swap_axes(first),
        "teacher_cut2": swap_axes(second),
        "disc.logits_real": real[:, None],
        "disc.logits_fake": generated[:, None],
        "disc.loss": loss,
        "disc.grad_head0_first": step.discriminator.heads[0].net[0].weight.grad,
    }
    assert step.errors(found) == {}

"""The adversarial losses of section V-B on scores D of noised latents, tokenwise or whole: (B, ...) -> (B,)."""

import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator on scores of data and of the student's samples (Eq. 13)."""
    return (F.relu(1 - real.float()) + F.relu(1 + fake.float())).flatten(1).mean(1)


def approximate_r1_loss(real: Tensor, changed: Tensor) -> Tensor:
    """Squared change of the scores of data when small noise is added to it: R1 without a second derivative (Lin et al.,
    2025)."""
    return (real.float() - changed.float()).square().flatten(1).mean(1)


def contrastive_loss(real: Tensor, exchanged: Tensor) -> Tensor:
    """Scores of data are to be higher under its own conditions than under those of another sample (Novack et al.,
    2025)."""
    return F.softplus(exchanged.float() - real.float()).flatten(1).mean(1)


def adversarial_loss(fake: Tensor) -> Tensor:
    """The student's loss: its samples' score, negated (Eq. 14)."""
    return -fake.float().flatten(1).mean(1)

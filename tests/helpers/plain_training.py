"""A training without ranks, DeepSpeed or shards, written out."""

import numpy as np
import torch

from audiox_trainer.models.released.audiox import SILENCE
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.core.rng import Purpose, sample_rng
from tests.helpers.scenarios import made_up


def plain_training(network: torch.nn.Module, config: PretrainConfig) -> np.ndarray:
    """Trains what has a gradient on `made_up` samples, for steps that end before any cooldown. Returns the loss and the
    gradient norm of every step. For clips that are shorter than what the network generates a silence follows."""
    o, s = config.optimizer, config.schedule
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    curve = []
    for step in range(config.training.steps):
        batch = made_up(config, step, list(range(config.training.global_batch)))
        latents = torch.stack([_latents(network, config, step, i, x) for i, x in enumerate(batch.latents)])
        rngs = [sample_rng(0, step, i, Purpose.NOISE) for i in range(len(latents))]
        noise = torch.stack([torch.from_numpy(g.standard_normal(latents.shape[1:], dtype=np.float32)) for g in rngs])
        t = torch.tensor([g.random() for g in rngs])
        noisy = t[:, None, None] * noise + (1 - t[:, None, None]) * latents
        loss = (network(noisy, t, *batch.conditions.tensors()) - (noise - latents)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, o.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = (1 - s.warmup ** (step + 1)) * o.lr * (1 + step / s.inv_gamma) ** -s.power
        optimizer.step()
        curve.append([loss.item(), norm.item()])
    return np.array(curve)


def _latents(network: torch.nn.Module, config: PretrainConfig, step: int, index: int, clip: torch.Tensor):
    more = config.model.latent_frames - len(clip)
    if not more:
        return clip
    silence = getattr(network, SILENCE)
    start = int(sample_rng(0, step, index, Purpose.SILENCE).integers(len(silence) - more + 1))
    return torch.cat((clip, silence[start : start + more]))

"""The loss on samples that training never reads, always the same ones under the same noise.

B batch, L latent frames, C latent channels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ...models.encoders.base import TextEncoder
from ..checkpoint.load import TrainedModel
from ..core.config import DropoutConfig, PretrainConfig, ValidationConfig, check_ranks
from ..core.hardware import to_device
from ..data.batches import Batch
from ..data.reader import Reader, check_no_pairs, check_streams
from ..engine.meter import Meter
from ..engine.process_group import World
from ..losses.flow_matching import flow_matching_loss, interpolate
from ..losses.guidance import predict_velocity

LOSS = "validation/loss"  # the mean over the levels


def check_held_out(config: PretrainConfig, ranks: int) -> None:
    """Raises ShardError or ValueError where the samples for validation are missing, too few, or do not divide among
    the ranks."""
    if not config.validation.every:
        return
    held_out = _held_out(config)
    try:
        check_ranks(held_out.training, ranks)
    except ValueError as error:
        raise ValueError(f"validation.samples, which are one batch: {error}") from None
    check_no_pairs(held_out, "validation")
    check_streams(held_out, hashes=False, where=("validation.streams", "validation.samples"))


def read_held_out(config: PretrainConfig, encode_text: TextEncoder, world: World) -> Batch | None:
    """This rank's share of the samples for validation, if there is any. All ranks call this, before the first step."""
    if not config.validation.every:
        return None
    return next(Reader(_held_out(config), encode_text, world.rank, world.ranks).batches(0))


def _held_out(config: PretrainConfig) -> PretrainConfig:
    """The configuration by which the reader finds the samples: one global batch, with all conditions."""
    data = replace(config.data, streams=config.validation.streams, dropout=DropoutConfig(0, 0, 0, 0), workers=0)
    training = replace(config.training, global_batch=config.validation.samples)
    return replace(config, data=data, training=training, validation=ValidationConfig())


class Validation:
    """Measures the loss of a model's moving average while it trains."""

    def __init__(self, config: PretrainConfig, model: TrainedModel, batch: Batch, noise: Tensor) -> None:
        """`batch` is this rank's share of the held-out samples, `noise` (B, L, C) theirs."""
        self.every, self.levels = config.validation.every, config.validation.levels
        self.total, self.micro_batch = config.training.steps, config.training.micro_batch
        self.model, self.batch, self.noise = model, batch, noise

    def is_due(self, done: int) -> bool:
        return done % self.every == 0 or done == self.total

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Mean flow-matching losses over the samples of all ranks, at each noise level and over all of them. All ranks
        call this."""
        engine, ema, meter, device = self.model.engine, self.model.ema, Meter(), self.noise.device
        assert ema is not None
        micros = zip(self.batch.split(self.micro_batch), self.noise.split(self.micro_batch), strict=True)
        # Blocks without a backward pass would be compiled once more.
        with engine.swapped_weights(ema.values) as model, torch.compiler.set_stance("force_eager"):
            for micro, z1 in micros:
                z0, conditions = to_device(micro.latents, device), micro.conditions.to(device, engine.dtype)
                for level in self.levels:
                    t = torch.full((len(micro),), level, device=device)
                    v = predict_velocity(model, engine.dtype, interpolate(z0, z1, t), t, conditions)
                    losses = flow_matching_loss(v, z0, z1)
                    meter.add(LOSS, losses)
                    meter.add(f"validation/loss_at/{level:.2f}", losses)
        return meter.read()

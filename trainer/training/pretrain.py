"""Pretraining of AudioX-Base: flow matching on latents under multimodal conditions (section IV)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...kernels.ops import Ops
from ...models import strict
from ...models.audiox import AudioX
from ...models.encoders.build import build_text_encoder
from ..checkpoint import load, rollback
from ..checkpoint.initial_weights import InitialWeights, begin_from, init_metadata, read_initial_weights
from ..checkpoint.load import TrainedModel
from ..core.config import LoopConfig, PretrainConfig, TrainingConfig, check_ranks
from ..core.hardware import peak_flops, to_device
from ..core.rng import Purpose, sample_rng
from ..cost.operations import training_flops
from ..data.batches import Batch
from ..data.reader import Reader
from ..engine import kernel_selection, zero
from ..engine.compilation import compile_blocks
from ..engine.ema import Ema
from ..engine.fp8 import use_fp8
from ..losses.flow_matching import flow_matching_loss, interpolate, timesteps_from_uniform
from ..resilience.watchdog import Watchdog
from ..training.learning_rate import learning_rate
from . import run_folder
from .health import StepResult
from .loop import train
from .meter import NoiseBins
from .previews import Previews


class Pretraining:
    """The teacher's training step, its state and its metrics."""

    bar_metrics: tuple[str, ...] = ("loss", "lr", "samples_per_s")

    def __init__(
        self,
        config: PretrainConfig,
        world: zero.World,
        ops: Ops | None = None,
        initial: InitialWeights | None = None,
    ) -> None:
        """The weights are `initial`, or random."""
        self.config, self.world = config, world
        training = config.training
        torch.manual_seed(training.seed)
        with world.device:  # a GPU draws billions of random numbers in no time
            model = AudioX(config.model, config.sampling)
        self.init_record = begin_from(model, initial, config.init) if initial else None
        self.model = configure_model(model, training, ops)
        accumulation = check_ranks(training, world.ranks)
        self.engine = zero.Engine(
            self.model.to(world.device),
            config.optimizer,
            config.zero,
            training.precision,
            training.micro_batch,
            accumulation,
            config.deepspeed,
        )
        self.ema = Ema(config.ema, self.engine.shards())
        self.roles = {"model": TrainedModel(self.engine, self.ema)}
        self.bins = NoiseBins(world.device)
        self.total = training.steps
        self.previews = Previews(config)

    def step(self, step: int, batch: Batch) -> StepResult:
        """One optimizer step on this rank's share of the global batch."""
        rate = learning_rate(self.config.schedule, self.config.optimizer.lr, step, self.config.training.steps)
        applied, sample_losses = False, []
        for micro in batch.split(self.config.training.micro_batch):
            losses, t = self.losses(step, micro)
            self.bins.add(losses, t)
            sample_losses.append(losses.detach())
            self.engine.backward(losses.mean())
            applied = self.engine.step(rate)
        if applied:
            self.ema.update(self.engine.shards(), self.engine.updates())
        values = {"lr": rate, "skipped": float(step + 1 - self.engine.updates())}  # skipped since the start of the run
        flops = training_flops(self.config.model, batch.conditions.text.shape[1])
        return StepResult("model", applied, values, flops, torch.cat(sample_losses))

    def losses(self, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each sample's flow-matching loss (B,) at its own noise level t (B,)."""
        z1, uniform = draw_noise(self.config.training.seed, step, batch)
        device, dtype = self.world.device, self.engine.dtype
        z0, z1 = batch.latents.to(device, non_blocking=True), to_device(z1, device)
        t = to_device(sample_timesteps(uniform, self.config.training), device)
        conditions = batch.conditions.to(device, dtype)
        v = self.engine.engine(interpolate(z0, z1, t).to(dtype), t, *conditions.tensors())
        return flow_matching_loss(v, z0, z1), t

    def metrics(self) -> dict[str, float]:
        """All ranks call this."""
        return self.bins.read() | {"grad_norm": self.engine.gradient_norm()}

    def kind(self, step: int) -> str:
        return "model"

    def can_checkpoint_after(self, step: int) -> bool:
        return True

    def warnings(self, values: dict[str, float]) -> list[str]:
        return []

    def preview(self) -> tuple[list[str], Tensor]:
        """All ranks call this."""
        with self.engine.swapped_weights(self.ema.values) as model:
            latents = self.previews.sample(model, self.config.sampling, self.world.device, self.engine.dtype)
        return self.previews.names, self.previews.codec.decode(latents)


def draw_noise(seed: int, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """Noise of the latents' shape, and uniform numbers (B,). Each sample has its own generator."""
    rngs = [sample_rng(seed, step, index, Purpose.NOISE) for index in batch.indices.tolist()]
    shape = tuple(batch.latents.shape[1:])
    noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
    return torch.from_numpy(noise), torch.tensor([rng.random() for rng in rngs])


def sample_timesteps(uniform: Tensor, training: TrainingConfig) -> Tensor:
    """Each sample's noise level (B,) from its uniform draw."""
    return timesteps_from_uniform(
        uniform, training.timestep_sampling, training.timestep_logit_mean, training.timestep_uniform_share
    )


def configure_model(model: AudioX, training: LoopConfig, ops: Ops | None = None) -> AudioX:
    """Sets up recomputation, compilation and kernels of a model's blocks, as the configuration says."""
    if ops is not None:
        model.use(ops)
    if training.fp8:
        use_fp8(model)
    model.backbone.checkpointing = training.activation_checkpointing
    if training.compile:
        compile_blocks(model, training.compile_conditioner)
    return model


def pretrain(config: PretrainConfig, output: Path, resume: bool, from_step: int | None = None) -> None:
    """Trains to `training.steps` and writes into `output`. Resumes from the newest checkpoint, or from `from_step`.

    Checks the configuration, the shards and the folder before it makes a process group. Raises ValueError or OSError.
    """
    from_step = rollback.asked_step(output, from_step)
    run_folder.check_start(config, output, resume, from_step)
    kernel_selection.check_kernels(config.kernels, config.training.precision, config.model)
    before = load.newest_manifest(output, from_step)
    initial = read_initial_weights(config.init.weights) if config.init.weights and not before else None
    with Watchdog(config.timeouts) as watchdog:
        world = zero.init_process_group(config.training.cpu_threads, config.timeouts)
        watchdog.connect(world.rank, world.ranks)
        ops = kernel_selection.select_for_run(config, world, config.training.precision, output).ops()
        trainer = Pretraining(config, world, ops, initial)
        reader = Reader(config, build_text_encoder(config.model.text), world.rank, world.ranks)
        peak = peak_flops(world.device, trainer.engine.dtype) * world.ranks
        metadata = {"config": strict.to_dict(config)} | init_metadata(trainer.init_record, before, world.rank)
        train(trainer, reader, config, world, output, resume, peak, metadata, watchdog, from_step)

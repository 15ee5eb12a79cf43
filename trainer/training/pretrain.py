"""Pretraining of AudioX-Base: flow matching on latents under multimodal conditions (section IV)."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...kernels.ops import Ops
from ...models import strict
from ...models.blocks import recompute_swiglu
from ...models.encoders.build import build_text_encoder
from ...models.lora import add_adapters
from ...models.networks import Network, build_network
from ...models.released.audiox import SILENCE
from ..checkpoint import load, rollback
from ..checkpoint.initial_weights import (
    InitialWeights,
    begin_from,
    check_trained,
    init_metadata,
    read_initial_weights,
    read_recorded_weights,
)
from ..checkpoint.load import TrainedModel
from ..core.config import BaseConfig, LoopConfig, PretrainConfig, TrainingConfig, check_ranks
from ..core.hardware import peak_flops, to_device
from ..core.rng import Purpose, sample_rng
from ..cost.operations import training_flops
from ..data.batches import Batch
from ..data.reader import Reader
from ..engine import kernel_selection, zero
from ..engine.checksum import checksum, gradient_checksum
from ..engine.compilation import compile_blocks
from ..engine.ema import Ema
from ..engine.fp8 import use_fp8
from ..engine.meter import NoiseBins
from ..engine.process_group import World, init_process_group
from ..losses.flow_matching import flow_matching_loss, interpolate, timesteps_from_uniform
from ..resilience.watchdog import Watchdog
from ..self_test.gradients import check_gradients
from . import run_folder
from .health import StepResult
from .learning_rate import learning_rate
from .loop import train
from .previews import Previews, PromptSampler
from .scores import Scores, check_scores
from .trackers import check_trackers
from .validation import Validation, check_held_out, read_held_out


class Pretraining:
    """The teacher's training step, its state and its metrics."""

    bar_metrics: tuple[str, ...] = ("loss", "lr", "samples_per_s")

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        ops: Ops | None = None,
        initial: InitialWeights | None = None,
        engine: Callable[..., zero.Engine] = zero.Engine,
    ) -> None:
        """The weights are `initial`, or random; those of a resumed run too, unless adapters are trained of them."""
        self.config, self.world = config, world
        training = config.training
        torch.manual_seed(training.seed)
        with world.device:  # a GPU draws billions of random numbers in no time
            model = build_network(config.model, config.sampling)
        self.init_record = begin_from(model, initial, config.init) if initial else None
        if config.lora:
            add_adapters(model, config.lora)
            check_trained(model, self.init_record)
        self.model = configure_model(model, training, ops, sharded=config.zero.stage == 3)
        accumulation = check_ranks(training, world.ranks)
        self.engine = engine(
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
        self.frozen: dict[str, zero.FrozenModel] = {}
        self.bins = NoiseBins(world.device)
        self.total = training.steps
        self.previews = Previews(config)

    def step(self, step: int, batch: Batch) -> StepResult:
        """One optimizer step on this rank's share of the global batch."""
        batch = self._whole(step, batch)
        rate = learning_rate(self.config.schedule, self.config.optimizer.lr, step, self.config.training.steps)
        applied, sample_losses = False, []
        for micro in batch.split(self.config.training.micro_batch):
            with self.world.times("forward"):
                losses, t = self.losses(step, micro)
            self.bins.add(losses, t)
            sample_losses.append(losses.detach())
            with self.world.times("backward"):
                self.engine.backward(losses.mean())
            applied = self.engine.step(rate)
        if applied:
            self.ema.update(self.engine.shards(), self.engine.updates())
        values = {"lr": rate, "skipped": float(step + 1 - self.engine.updates())}  # skipped since the start of the run
        flops = training_flops(self.config.model, batch.conditions.text.shape[1], self.config.lora)
        return StepResult("model", applied, values, flops, torch.cat(sample_losses))

    def losses(self, step: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each sample's flow-matching loss (B,) at its own noise level t (B,)."""
        z1, uniform = draw_noise(self.config.training.seed, step, batch)
        device, dtype = self.world.device, self.engine.dtype
        z0, z1 = batch.latents.to(device, non_blocking=True), to_device(z1, device)
        t = to_device(sample_timesteps(uniform, self.config.training), device)
        conditions = batch.conditions.to(device, dtype)
        v = self.engine.forward(interpolate(z0, z1, t).to(dtype), t, *conditions.tensors())
        return flow_matching_loss(v, z0, z1), t

    def fingerprint(self, step: int, batch: Batch) -> Tensor:
        """Checksums (2,) of the losses of the step's first micro-batch and of their gradient, from which nothing is
        learned. All ranks call this."""
        with self.engine.repeating():
            micro = self._whole(step, batch).split(self.config.training.micro_batch)[0]
            losses, _ = self.losses(step, micro)
            gradient = gradient_checksum(losses.mean(), self.engine.module.parameters())
        return torch.stack((checksum([losses]), gradient))

    def _whole(self, step: int, batch: Batch) -> Batch:
        """A batch with as many latents as the model generates."""
        return batch.followed_by(*silence_after(self.config, self.engine.constants), step)

    def metrics(self) -> dict[str, float]:
        """All ranks call this."""
        return self.bins.read() | {"grad_norm": self.engine.gradient_norm()}

    def kind(self, step: int) -> str:
        return "model"

    def can_checkpoint_after(self, step: int) -> bool:
        return True

    def warnings(self, values: dict[str, float]) -> list[str]:
        return []

    def validation(self, held_out: Batch | None) -> Validation | None:
        """The measurement on this rank's share of the held-out samples, if there are any."""
        if held_out is None:
            return None
        batch = self._whole(0, held_out)
        noise, _ = draw_noise(self.config.training.seed, 0, batch)
        return Validation(self.config, self.roles["model"], batch, to_device(noise, self.world.device))

    def preview(self) -> tuple[list[str], Tensor]:
        """All ranks call this."""
        return self.previews.names, self.previews.codec.decode(self.sample(self.previews))

    def sample(self, sampler: PromptSampler) -> Tensor:
        """Latents (B, L, C) by the moving average. All ranks call this."""
        with self.engine.swapped_weights(self.ema.values) as model:
            return sampler.sample(model, self.config.sampling, self.world.device, self.engine.dtype)


def untrained(config: PretrainConfig, world: World, ops: Ops | None, engine: Callable[..., zero.Engine]) -> Pretraining:
    """A pretraining of a new model, for the gradient self-test."""
    return Pretraining(config, world, ops, engine=engine)


def silence_after(config: BaseConfig, constants: Mapping[str, Tensor]) -> tuple[Tensor, int, int]:
    """What `Batch.followed_by` needs: the model's latents of silence, if it has any, its frames, and the seed."""
    none = torch.zeros(0, config.model.codec.latent_channels)
    return constants.get(SILENCE, none), config.model.latent_frames, config.training.seed


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


def configure_model(model: Network, training: LoopConfig, ops: Ops | None = None, sharded: bool = False) -> Network:
    """Sets up recomputation, compilation and kernels of a model's blocks, as the configuration says. `sharded` says
    whether ZeRO-3 will shard its weights."""
    if ops is not None:
        model.use(ops)
    if training.fp8:
        use_fp8(model, training.fp8_rows)
    model.backbone.checkpointing = training.activation_checkpointing
    recompute_swiglu(model, training.recompute_swiglu)
    if training.compile:
        compile_blocks(model, training.compile_conditioner, sharded)
    return model


def pretrain(
    config: PretrainConfig, output: Path, resume: bool, from_step: int | None = None, self_test: bool | None = None
) -> None:
    """Trains to `training.steps` and writes into `output`. Resumes from the newest checkpoint, or from `from_step`.

    Checks the configuration, the shards and the folder before it makes a process group, and then DeepSpeed's gradients
    (`self_test`: see `check_gradients`). Raises ValueError or OSError.
    """
    from_step = rollback.asked_step(output, from_step)
    run_folder.check_start(config, output, resume, from_step)
    check_scores(config)
    check_trackers(config)
    check_held_out(config, int(os.environ.get("WORLD_SIZE", "1")))
    kernel_selection.check_kernels(config.kernels, config.training.precision, config.model)
    before = load.newest_manifest(output, from_step)
    initial = None
    if config.init.weights and not before:
        initial = read_initial_weights(config.init.weights)
    elif config.lora and before:  # a checkpoint has the adapters alone
        initial = read_recorded_weights(before["init"])
    with Watchdog(config.timeouts) as watchdog:
        world = init_process_group(config.training.cpu_threads, config.timeouts)
        watchdog.connect(world.rank, world.ranks)
        ops = kernel_selection.select_for_run(config, world, config.training.precision, output).ops()
        check_gradients(config, untrained, world, ops, self_test)
        trainer = Pretraining(config, world, ops, initial)
        initial = None  # its memory is needed
        encode_text = build_text_encoder(config.model.text)
        reader = Reader(config, encode_text, world.rank, world.ranks)
        validation = trainer.validation(read_held_out(config, encode_text, world))
        scores = Scores(config, world, output) if config.scores.every else None
        peak = peak_flops(world.device, trainer.engine.dtype) * world.ranks
        metadata = {"config": strict.to_dict(config)} | init_metadata(trainer.init_record, before, world.rank)
        train(trainer, reader, config, world, output, resume, peak, metadata, watchdog, from_step, validation, scores)

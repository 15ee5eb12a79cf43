"""Whole steps on fake CUDA tensors: pretraining, each phase of a distillation, previews, samplers, the reader with T5.

Arguments: the library of fake_cuda.py, and a file that gets, for each scenario, its waits and copies.
"""

import sys
from pathlib import Path

from tests.gpu import fake_cuda

if __name__ == "__main__":
    fake_cuda.load(Path(sys.argv[1]))  # before torch is imported

import contextlib
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import deepspeed
import numpy as np
import torch
from torch import nn

from audiox_trainer.kernels.ops import BACKENDS, KernelsConfig, resolve
from audiox_trainer.models.audiox import AudioX, SamplingConfig
from audiox_trainer.models.config import TextConfig
from audiox_trainer.models.encoders.runtime import Runtime
from audiox_trainer.models.encoders.t5 import T5TextEncoder
from audiox_trainer.trainer.checkpoint import save as saving
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.core.update_cycle import Phase
from audiox_trainer.trainer.data.batches import BatchAssembler
from audiox_trainer.trainer.data.prefetch import Prefetcher
from audiox_trainer.trainer.data.record import Record
from audiox_trainer.trainer.distillation.updates import Distillation
from audiox_trainer.trainer.engine import kernel_selection
from audiox_trainer.trainer.engine.process_group import World
from audiox_trainer.trainer.training.pretrain import Pretraining
from tests.helpers.scenarios import made_up
from tests.helpers.small_config import small_config, small_distill_config

with mock.patch.object(torch, "inference_mode", torch.no_grad):  # fake tensors cannot be made in inference mode
    from audiox_trainer.trainer.generation import generator as generation
    from audiox_trainer.trainer.generation import sampling_graphs

CUDA = torch.device("cuda:0")
WORLD = World(0, 1, 0, CUDA)
OPS = resolve(dict.fromkeys(BACKENDS, "triton"))
BF16 = "training.precision=bf16"
ROLES = ("student", "fake", "discriminator", "teacher")


class FakeZero:
    """DeepSpeed's optimizer at stage 1 on one rank: all weights in one flat fp32 shard."""

    def __init__(self, model: nn.Module, adamw: torch.optim.AdamW) -> None:
        self.model, self.optimizer, self.param_groups = model, adamw, adamw.param_groups
        start = 0
        for parameter in model.parameters():
            place = SimpleNamespace(start=start, numel=parameter.numel())
            low = SimpleNamespace(start=0, numel=parameter.numel())
            parameter._hp_mapping = SimpleNamespace(
                lp_fragment_address=low, hp_fragment_address=place, param_group_index=0
            )
            start += parameter.numel()
        self.single_partition_of_fp32_groups = [torch.zeros(start, device=CUDA)]

    def update_lp_params(self) -> None:
        (flat,) = self.single_partition_of_fp32_groups
        for parameter in self.model.parameters():
            place = parameter._hp_mapping.hp_fragment_address
            with torch.no_grad():
                parameter.copy_(flat[place.start : place.start + place.numel].view_as(parameter))


class FakeDeepSpeed:
    """DeepSpeed's engine as the project calls it. Gradients have to be on the device, at every weight."""

    def __init__(self, model: nn.Module, optimizer: Any, config: dict[str, Any]) -> None:
        self.module = model.to(torch.bfloat16) if config.get("bf16") else model
        self.accumulation, self.micro = config["gradient_accumulation_steps"], 0
        self.optimizer = FakeZero(self.module, optimizer)
        self.updates = 0

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.device == CUDA and loss.ndim == 0
        loss.backward()

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self.micro + 1) % self.accumulation == 0

    def step(self) -> None:
        self.micro += 1
        for name, parameter in self.module.named_parameters():
            assert parameter.device == CUDA and (parameter.grad is None or parameter.grad.device == CUDA), name
        missing = {name for name, p in self.module.named_parameters() if p.grad is None}
        # The last block returns latents alone, so its queries of the conditions lead nowhere.
        assert all(name.endswith("condition.q_norm") for name in missing), missing
        if self.micro % self.accumulation == 0:
            self.updates += 1
            for parameter in self.module.parameters():
                parameter.grad = None

    def was_step_applied(self) -> bool:
        return True

    def get_global_grad_norm(self) -> float:
        return 1.0

    @staticmethod
    def initialize(model: nn.Module, optimizer: Any, config: dict[str, Any]) -> tuple[Any, ...]:
        engine = FakeDeepSpeed(model, optimizer, config)
        return engine, engine.optimizer, None, None


class Embedding(nn.Module):
    """T5's model as far as its encoder asks."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, config.dim)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids) * attention_mask.unsqueeze(-1))


def tokenizer(texts: list[str], truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
    return {"input_ids": [[*range(len(text.split())), 1][:max_length] for text in texts]}


def t5(config: TextConfig) -> T5TextEncoder:
    return T5TextEncoder(config, Embedding(config), tokenizer, Runtime(CUDA, torch.bfloat16))


def records(config: PretrainConfig, count: int) -> list[Record]:
    codec, video = config.model.codec, config.model.video
    latents = np.zeros((codec.frames, codec.latent_channels), np.float16)
    image, motion = (np.ones((n, video.dim), np.float16) for n in (2, video.steps))
    captions = ["a bell", "two kicks, then a bell"]
    one = Record("0", "audio", latents, latents + 1, image, motion, captions, {}, codec.seconds)
    return [replace(one, id=str(i)) for i in range(count)]


# Its weights are real: torch reads files into memory that there is.
SAMPLED = AudioX(small_config(None, "model.backbone.heads=1").model, SamplingConfig("renoise", 4, 1.0))

Scenario = Callable[[fake_cuda.Transfers, Path], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


@scenario
def pretraining(transfers: fake_cuda.Transfers, folder: Path) -> None:
    """A step of two micro-batches, whose features come from T5 on the device through assembler and prefetcher."""
    config = small_config(None, BF16, "zero.stage=1", "model.backbone.heads=1", "model.text.kind=t5")
    trainer = Pretraining(config, WORLD, OPS)
    batch = BatchAssembler(config.model, config.data, t5(config.model.text), 0)(
        records(config, 8), [{"TV2A": 1.0, "inpainting": 1.0}] * 8, 0, range(8)
    )
    transfers.clear()
    with Prefetcher(iter([batch]), CUDA) as batches:
        trainer.step(0, next(batches))
    assert batch.conditions.text.device == CUDA


@scenario
def pretraining_metrics(transfers: fake_cuda.Transfers, folder: Path) -> None:
    config = small_config(None, BF16, "zero.stage=1", "model.backbone.heads=1")
    trainer = Pretraining(config, WORLD, OPS)
    transfers.clear()
    trainer.metrics()


def distillation(*overrides: str) -> Scenario:
    """One update of each phase."""

    def run(transfers: fake_cuda.Transfers, folder: Path) -> None:
        low = [f"{role}.precision=bf16" for role in ROLES]
        sizes = "model.backbone.heads=1", "training.global_batch=4", "updates.discriminator_warm_up=1"
        config = small_distill_config(None, *sizes, *low, *overrides)
        trainer = Distillation(config, AudioX(config.model), WORLD, OPS)  # the weights are read on the host
        batch, seen = made_up(config, 0, list(range(4))), set[Phase]()
        transfers.clear()
        for update in range(trainer.total):
            phase = trainer.cycle.phase(update)
            if phase not in seen:
                trainer.step(update, batch.pinned())
                seen.add(phase)
        assert seen == set(Phase)

    return run


SCENARIOS["distillation"] = distillation()
SCENARIOS["distillation_euler"] = distillation(
    "sampling.sampler=euler", "warm_start.rollout=true", "distillation.loss=eq10"
)


@scenario
def preview(transfers: fake_cuda.Transfers, folder: Path) -> None:
    prompts = 'logging.preview_prompts=["a bell", "two kicks"]'
    config = small_config(None, BF16, "zero.stage=1", "model.backbone.heads=1", prompts, "sampling.steps=3")
    trainer = Pretraining(config, WORLD, OPS)
    trainer.previews.load()
    transfers.clear()
    names, waves = trainer.preview()
    assert len(names) == len(waves) == 2 and waves.device.type == "cpu"


@scenario
def sampling(transfers: fake_cuda.Transfers, folder: Path) -> None:
    """From weights to a wave: four renoised steps, and guided ones by Euler's method."""
    generator = sampler(folder)
    transfers.clear()
    for kind in (SamplingConfig("renoise", 4, 1.0), SamplingConfig("euler", 2, 3.0)):
        generator.sampling = kind
        assert generator.generate(text="a bell", seed=0).device.type == "cpu"


@scenario
def sampling_graph(transfers: fake_cuda.Transfers, folder: Path) -> None:
    """A CUDA graph of a sampling, its decoder included: nothing in it may go to the host or come from there."""
    generator, captured = sampler(folder), []
    config = generator.model.config
    generator.codec = SimpleNamespace(decode=lambda latents: latents.new_zeros(len(latents), 1, config.codec.samples))
    on_device = replace(config, codec=replace(config.codec, kind="oobleck"))

    def capture(make: Callable[[], Callable[[], None]], inner: int, warmups: int, pool: Any) -> Callable[[], None]:
        call = make()
        call()
        before = +transfers.waits, +transfers.copies
        call()
        assert before == (transfers.waits, transfers.copies)
        captured.append(call)
        return call

    transfers.clear()
    with (
        mock.patch.object(sampling_graphs, "capture_graph", capture),
        mock.patch.object(torch.cuda, "graph_pool_handle", object),
        mock.patch.object(generator.model, "config", on_device),
    ):
        for kind in (SamplingConfig("renoise", 4, 1.0), SamplingConfig("euler", 2, 3.0)):
            generator.sampling = kind
            for _ in range(3):
                assert generator.generate(text="a bell", seed=0).device.type == "cpu"
    assert len(captured) == 2


def sampler(folder: Path) -> generation.Generator:
    kernels = KernelsConfig(**dict.fromkeys(BACKENDS, "triton"))
    with (
        mock.patch.object(generation, "load_weights", lambda _: SAMPLED),
        mock.patch.object(kernel_selection, "device_name", lambda _: "a GPU"),
    ):
        generator = generation.Generator(folder, CUDA, torch.bfloat16, kernels)
    generator.encode_text = t5(generator.model.config.text)
    return generator


@scenario
def checkpoint(transfers: fake_cuda.Transfers, folder: Path) -> None:
    """The copy of the state on the host that is written in the background."""
    trainer = Pretraining(small_config(None, "zero.stage=1", "model.backbone.heads=1"), WORLD, OPS)
    transfers.clear()
    (state,) = saving._rank_states(trainer.roles, copied=True)
    assert {tensor.device.type for tensor in state.tensors.values()} == {"cpu"}
    assert len(state.tensors) > 4 * len(list(trainer.model.parameters()))  # with moments and the EMA


@contextlib.contextmanager
def without_deepspeed() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with (
        mock.patch.object(deepspeed, "initialize", FakeDeepSpeed.initialize),
        mock.patch.object(torch.distributed, "all_reduce", lambda *_, **__: None),
    ):
        yield
    torch.distributed.destroy_process_group()


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    with without_deepspeed():
        for name, run in SCENARIOS.items():
            error = ""
            with fake_cuda.gpu() as transfers:
                try:
                    run(transfers, out.parent)
                except Exception:  # the other scenarios have something to say too
                    error = traceback.format_exc()
            results[name] = {"error": error, "waits": transfers.waits, "copies": transfers.copies}
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[2]))

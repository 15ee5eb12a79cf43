"""A training engine of torch alone: its gradients are what those of DeepSpeed are compared with."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import OptimizerConfig, ZeroConfig
from ..engine.zero import Engine


class PlainEngine(Engine):
    """The calls of `Engine`, without DeepSpeed, buckets, shards or hooks: torch's backward pass, a sum in fp32 over the
    micro-batches, one mean over the ranks, and clipping. It computes in the dtype that DeepSpeed would compute in, and
    never changes the weights."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        zero: ZeroConfig,
        precision: str,
        micro_batch: int,
        accumulation: int,
        overrides: dict[str, Any],
    ) -> None:
        low = precision == "bf16"
        self.dtype = torch.bfloat16 if low and zero.stage > 0 else torch.float32
        self.autocast = low and zero.stage == 0
        self.module = model.to(self.dtype)
        self.engine, self.optimizer, self.sharded, self.offload = self._forward, None, False, False
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self.constants: dict[str, Tensor] = {}
        self.clip, self.accumulation = optimizer.max_grad_norm, accumulation
        self.sums: list[Tensor] = []
        self.micro_steps = 0
        self.gradient: dict[str, Tensor] = {}  # of the last step, fp32, the same on all ranks
        self.norm, self._updates = float("nan"), 0

    def _forward(self, *inputs: Tensor, **options: int) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self.autocast):
            output: Tensor = self.module(*inputs, **options)
        return output

    def backward(self, loss: Tensor) -> None:
        if self.micro_steps % self.accumulation == 0:
            self.sums = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters.values()]
        loss.backward()
        for total, parameter in zip(self.sums, self.parameters.values(), strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad, alpha=1 / self.accumulation)
            parameter.grad = None
        self.micro_steps += 1

    def step(self, rate: float) -> bool:
        if self.micro_steps % self.accumulation:
            return False
        flat = torch.cat([total.flatten() for total in self.sums])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        norm = flat.norm()
        self.norm = float(norm)
        if self.clip:
            flat *= min(1.0, self.clip / (self.norm + 1e-6))
        parts = flat.split([total.numel() for total in self.sums])
        self.gradient = dict(zip(self.shapes, parts, strict=True))
        return False

    def destroy(self) -> None:
        pass

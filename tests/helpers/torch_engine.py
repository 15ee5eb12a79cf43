"""A training engine of torch alone, for whole distillations in one process."""

from typing import Any

import torch
from torch import Tensor

from audiox_trainer.trainer.core.config import OptimizerConfig
from audiox_trainer.trainer.cost.role_bytes import RoleBytes
from audiox_trainer.trainer.self_test.plain_engine import PlainEngine


class TorchEngine(PlainEngine):
    """`PlainEngine` that trains, by torch's AdamW."""

    def __init__(self, model: Any, optimizer: OptimizerConfig, *rest: Any) -> None:
        super().__init__(model, optimizer, *rest)
        how = {"betas": optimizer.betas, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
        self.adamw = torch.optim.AdamW(list(self.parameters.values()), **how)

    def step(self, rate: float) -> bool:
        super().step(rate)
        if self.micro_steps % self.accumulation:
            return False
        for name, parameter in self.parameters.items():
            parameter.grad = self.gradient[name].view_as(parameter)
        self.adamw.param_groups[0]["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad()
        self._updates += 1
        return True

    def shards(self) -> list[Tensor]:
        return [parameter.data for parameter in self.parameters.values()]

    def refresh_model(self) -> None:
        """Shards are the weights."""

    def reset_moments(self) -> None:
        self.adamw.state.clear()

    def bytes(self, ema: Any = (), shared: Any = None) -> RoleBytes:
        return RoleBytes(0, 0, 0, 0)

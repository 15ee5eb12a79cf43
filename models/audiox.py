"""AudioX: conditioner, fusion and backbone as one set of weights that loads with `from_pretrained`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..kernels.ops import Ops
from . import strict
from .blocks import JointBlock, Stream, SwiGLU
from .conditioner import Conditioner
from .config import MAX_GUIDANCE, MAX_STEPS, ModelConfig
from .fusion import Fusion, Gate
from .interval import check_interval
from .mmdit import LinearPath, MMDiT, TimestepFeatures
from .weights import float32_copy, load_strict

WEIGHTS = "model.safetensors"
Kind = Literal["euler", "renoise"]  # the flow ODE; denoise and renoise


@dataclass(frozen=True)
class SamplingConfig:
    """The sampler settings that belong to a set of weights."""

    sampler: Kind = "euler"
    steps: int = 50
    guidance: float = 3.0  # 1 means none
    shift: float = 1.0  # above 1 takes more of the steps at high noise, where the structure is decided
    timesteps: tuple[float, ...] = ()  # the noise levels themselves, falling from 1; then `shift` is ignored
    rescale: float = 0.0  # share of a guided velocity that is scaled to the deviation of the one without guidance
    guidance_interval: tuple[float, ...] = (0.0, 1.0)  # lowest and highest noise level with guidance; none elsewhere

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps: {self.steps} must be at least 1, and at most {MAX_STEPS}")
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance: {self.guidance:g} must be from 0 to {MAX_GUIDANCE:g}; 1 is none")
        check_interval("guidance_interval", self.guidance_interval)
        if self.timesteps and (
            self.timesteps[0] != 1
            or list(self.timesteps) != sorted(set(self.timesteps), reverse=True)
            or self.timesteps[-1] <= 0
        ):
            raise ValueError(
                f"timesteps: {list(self.timesteps)} must fall from 1 and stay above 0, as 1, 0.75, 0.5, 0.25 do"
            )
        if self.timesteps and len(self.timesteps) != self.steps:
            raise ValueError(
                f"timesteps: {len(self.timesteps)} levels for {self.steps} steps; make the two numbers equal"
            )
        if self.shift <= 0:
            raise ValueError(f"shift: {self.shift} must be above 0; 1 takes equal steps")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale: {self.rescale:g} must be from 0 to 1; 0 is none")


@dataclass(frozen=True)
class WeightsConfig:
    """The `config.json` of a weights folder."""

    model: ModelConfig
    sampling: SamplingConfig | None = None
    license: str = ""  # of weights that come from elsewhere; whoever uses them is shown it


class PretrainedModel(nn.Module, PyTorchModelHubMixin, library_name="audiox-trainer"):
    """A network that loads with `from_pretrained` from a folder or the hub: nothing may be missing, left over or
    unknown. `from_pretrained` passes the sections of `config.json` as they were read, to be parsed strictly."""

    config_type: ClassVar[type[Any]]  # of config.json

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: dict[str, Any] | None = None,
        map_location: str = "cpu",
        mapped: bool = False,
        **options: Any,
    ) -> Self:
        """`mapped` leaves the weights in the file: they take no memory until they are used, and ranks on one host
        share it then. Such a model is to be copied from (`float32_copy`), not computed with.

        Raises ValueError that names what does not fit.
        """
        parsed = strict.parse(cls.config_type, config or {})
        sections = {name: options.pop(name) for name in ("model", "sampling", "license") if name in options}
        options.pop("strict", None)  # it always is: a name that is missing would leave a weight random
        file = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            file = Path(hf_hub_download(model_id, WEIGHTS, **options))
        try:
            state = load_file(file, device=map_location)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
        least, there = parsed.model.least_weights, sum(tensor.numel() for tensor in state.values())
        if least > there:  # before it takes the memory
            raise ValueError(f"config.json: its model has at least {least} weights, {WEIGHTS} holds {there}")
        with torch.device("meta"):
            weights = cls(**sections)
        load_strict(weights, state, assign=True)
        return weights if mapped else float32_copy(weights, torch.device(map_location))


class AudioX(PretrainedModel, library_name="audiox-trainer"):
    """The trained part of AudioX-Base and AudioX-Turbo: everything but the frozen encoders and the codec."""

    config_type = WeightsConfig

    def __init__(
        self,
        model: ModelConfig | dict[str, Any],
        sampling: SamplingConfig | dict[str, Any] | None = None,
        license: str = "",
    ) -> None:
        super().__init__()
        config = strict.parse(ModelConfig, model, "model") if isinstance(model, dict) else model
        sampling = strict.parse(SamplingConfig, sampling, "sampling") if isinstance(sampling, dict) else sampling
        self.config: ModelConfig = config
        self.sampling: SamplingConfig = sampling or SamplingConfig()
        self.license = license
        self.conditioner = Conditioner(config)
        self.backbone = MMDiT(config.backbone, config.codec, config.fusion.width, self.conditioner.seconds)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize linear weights by Xavier. Layers that feed a residual or leave the model start at zero, so that
        every block is the identity at first (adaLN-zero) and fusion adds nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.backbone.modulation_out.weight)
        nn.init.zeros_(self.backbone.latent_out.weight)
        for module in self.modules():
            if isinstance(module, Stream):
                nn.init.zeros_(module.modulation.weight)
            elif isinstance(module, LinearPath):
                module.reset_parameters()
            elif isinstance(module, Gate):
                nn.init.zeros_(module.linear.weight)
            elif isinstance(module, Fusion) and module.config.enabled and module.config.attention:
                nn.init.zeros_(module.dispatch.out.weight)

    def use(self, ops: Ops) -> "AudioX":
        """Use these implementations of a block's operations in all blocks."""
        for module in self.modules():
            if isinstance(module, MMDiT | JointBlock | Stream | SwiGLU):
                module.ops = ops
        return self

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        video: Tensor,
        audio: Tensor,
        text: Tensor,
        text_length: Tensor,
        n_blocks: int | None = None,
        depths: Sequence[int] = (),
    ) -> Tensor:
        """Velocity (B, L, C) of z (B, L, C) at noise levels t (B,); the features are those of `Conditioner`."""
        condition, length = self.encode(video, audio, text, text_length)
        return self.backbone(z, t, condition, length, n_blocks, depths)

    def encode(self, video: Tensor, audio: Tensor, text: Tensor, text_length: Tensor) -> tuple[Tensor, Tensor]:
        """H_c (B, V+L+T, W) and its lengths (B,): computed once for all steps of a sampler."""
        condition = self.conditioner(video, audio, text, text_length)
        return condition, text_length + (condition.shape[1] - text.shape[1])

    def conditioned(self, condition: Tensor, length: Tensor) -> Callable[[Tensor, Any], Tensor]:
        """The velocity (z, noise levels or their `timestep_features`) -> v under what `encode` gave, for many steps."""
        return lambda z, t: self.backbone(z, t, condition, length)

    def timestep_features(self, t: Tensor) -> TimestepFeatures:
        """What depends on the noise levels t (B,) alone."""
        return self.backbone.timestep_features(t)

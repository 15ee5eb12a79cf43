"""Meta's audiobox-aesthetics (Tjandra et al., 2025): four judgements of ten seconds of sound, by WavLM of transformers
and a head for each, from the released weights.

B windows, n samples, T frames, D width, S layers' states.
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.libraries import transformers

AXES = ("CE", "CU", "PC", "PQ")  # content enjoyment and usefulness, production complexity and quality
RATE, SECONDS = 16000, 10  # Hz, and of a window
STRIDES = (5, 2, 2, 2, 2, 2, 2)  # of the convolutions, which are no part of the weights
FARTHEST = 800  # frames: the largest distance that positions tell apart
PREFIX = "wavlm_model."
RENAMES = (  # of the released names, to those of transformers
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights under the names of `Audiobox`."""
    result = {}
    for name, tensor in state.items():
        key = name.removeprefix(PREFIX)
        if key != name:
            for pattern, replacement in RENAMES:
                key = re.sub(pattern, replacement, key)
            key = PREFIX + key
        result[key] = tensor
    return result


class Head(nn.Module):
    """Linear layers with GELU between them, and a normalisation before it where the release has one."""

    def __init__(self, shapes: dict[int, tuple[int, ...]]) -> None:
        """`shapes`: of the weights at their places in the released sequence."""
        super().__init__()
        self.places = sorted(shapes)
        for place in self.places:
            shape = shapes[place]
            self.add_module(str(place), nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.LayerNorm(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 1)."""
        layers = [self.get_submodule(str(place)) for place in self.places]
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            x = layer(x)
            if following and not isinstance(following, nn.LayerNorm):
                x = F.gelu(x)
        return x


class Audiobox(nn.Module):
    """Mono sound at RATE -> a number for each of AXES, before the release's shift and scale."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """`shapes`: of weights under the released names. Raises KeyError where one that tells a size is missing."""
        super().__init__()
        wavlm = {name.removeprefix(PREFIX): shape for name, shape in shapes.items() if name.startswith(PREFIX)}
        self.wavlm_model = transformers().WavLMModel(_config(wavlm)).eval()
        heads = {}
        for axis in AXES:
            pattern = re.compile(rf"proj_layer\.{axis}\.(\d+)\.weight")
            found = {int(m[1]): shape for name, shape in shapes.items() if (m := pattern.fullmatch(name))}
            if not found:
                raise KeyError(f"proj_layer.{axis}")
            heads[axis] = Head(found)
        self.proj_layer = nn.ModuleDict(heads)
        self.layer_weights = nn.ParameterDict({a: torch.zeros(shapes[f"layer_weights.{a}"][0]) for a in AXES})

    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """waves (B, n) with silence after `lengths` (B,) samples -> (B, 4)."""
        features = self.wavlm_model.feature_extractor(waves).transpose(1, 2)
        x = self.wavlm_model.feature_projection(features)[0]  # (B, T, D)
        covered = waves.shape[1] // x.shape[1]  # samples of a frame
        heard = torch.arange(x.shape[1], device=x.device) * covered < lengths[:, None]  # (B, T)
        states = self._states(x * heard[..., None], heard)
        mean = torch.einsum("sbtd,bt->bsd", states, heard.float()) / heard.sum(dim=1).clamp(min=1)[:, None, None]
        scores = []
        for axis in AXES:
            mixed = torch.einsum("bsd,s->bd", mean, self.layer_weights[axis].softmax(dim=0))
            scores.append(self.proj_layer[axis](F.normalize(mixed, dim=-1)))
        return torch.cat(scores, dim=1)

    def _states(self, x: Tensor, heard: Tensor) -> Tensor:
        """The input of the layers and the output of each, (S, B, T, D)."""
        encoder: Any = self.wavlm_model.encoder
        x = encoder.layer_norm(x + encoder.pos_conv_embed(x))
        states, bias = [x], None
        for i, layer in enumerate(encoder.layers):
            x, bias = layer(x, attention_mask=heard, position_bias=bias, index=i)[:2]
            states.append(x)
        return torch.stack(states)


def _config(shapes: dict[str, tuple[int, ...]]) -> Any:
    """WavLM's configuration by the shapes of its weights under the released names."""
    layers = "encoder.layers.{}.self_attn.k_proj.weight"
    convolutions = [shapes[f"feature_extractor.conv_layers.{i}.0.weight"] for i in range(len(STRIDES))]
    width = shapes["post_extract_proj.weight"][0]
    buckets, heads = shapes["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return transformers().WavLMConfig(
        hidden_size=width,
        num_hidden_layers=sum(layers.format(i) in shapes for i in range(len(shapes))),
        num_attention_heads=heads,
        intermediate_size=shapes["encoder.layers.0.fc1.weight"][0],
        conv_dim=[shape[0] for shape in convolutions],
        conv_kernel=[shape[2] for shape in convolutions],
        conv_stride=list(STRIDES),
        num_conv_pos_embeddings=shapes["encoder.pos_conv.0.weight_v"][2],
        num_conv_pos_embedding_groups=width // shapes["encoder.pos_conv.0.weight_v"][1],
        num_buckets=buckets,
        max_bucket_distance=FARTHEST,
    )

"""Fixtures that the authors' released code made: small widths, random weights, every stage.

`tests/models/released/golden/outputs.safetensors` holds every 7th number of the tensors that have over 4,096.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from audiox_trainer.models.released.config import ReleasedConfig
from audiox_trainer.models.released.network import ReleasedNetwork, from_released, unused_shapes

GOLDEN = Path(__file__).resolve().parents[1] / "models/released/golden"
BOUND = 1e-5  # of the largest value
SIZES = json.loads((GOLDEN / "config.json").read_text())
SMALL = ReleasedConfig(
    width=SIZES["width"],
    depth=SIZES["depth"],
    heads=SIZES["attention_heads"],
    hidden=SIZES["ffn_hidden"],
    condition_width=SIZES["cond_dim"],
    fusion_heads=SIZES["maf_heads"],
    fusion_depth=SIZES["maf_layers"],
    temporal_depth=SIZES["temporal_depth"],
    temporal_heads=SIZES["temporal_heads"],
    temporal_head_width=SIZES["temporal_head_dim"],
)
CASES = {  # which of the two samples have video, text, an audio prompt
    "all": ((1, 1), (1, 1), (1, 1)),
    "none": ((0, 0), (0, 0), (0, 0)),
    "mixed": ((1, 0), (0, 1), (0, 1)),
}
LEVELS = (1.0, 0.75, 0.5, 0.25)


def swap_axes(x: torch.Tensor) -> torch.Tensor:
    """(B, channels, L) of the fixtures <-> (B, L, channels) of ours."""
    return x.transpose(1, 2)


def load_outputs() -> dict[str, tuple[torch.Tensor, float]]:
    """The stored numbers of each output, and the largest value of all."""
    with safe_open(GOLDEN / "outputs.safetensors", "pt") as file:
        largest = json.loads(file.metadata()["largest"])
        return {name: (file.get_tensor(name), largest[name]) for name in file.keys()}


def relative_errors(outputs: dict[str, tuple[torch.Tensor, float]], found: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference over the largest value, by name."""
    errors = {}
    for name, value in found.items():
        expected, largest = outputs[name]
        flat = value.detach().flatten()
        flat = flat[::7] if len(flat) > 4096 else flat
        errors[name] = (flat - expected).abs().max().item() / largest
    return errors


def too_far(errors: dict[str, float], bound: float = BOUND) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= bound}


def golden_network() -> ReleasedNetwork:
    """With the fixtures' weights, but for those that nothing is computed with."""
    network, unused = ReleasedNetwork(SMALL).eval(), unused_shapes(SMALL)
    state = load_file(GOLDEN / "weights.safetensors")
    network.load_state_dict(from_released({name: x for name, x in state.items() if name not in unused}))
    return network


def features(inputs, case: str) -> tuple[torch.Tensor, ...]:
    """The arguments of `encode`."""

    def pick(present, given, missing):
        return torch.stack([given[i] if present[i] else missing[i] for i in range(2)])

    video, text, audio = CASES[case]
    sync = pick(video, inputs["video.sync"], torch.zeros_like(inputs["video.sync"]))
    hidden = pick(text, inputs["text.t5_hidden"], inputs["text_empty.t5_hidden"])
    length = pick(text, inputs["text.mask"], inputs["text_empty.mask"]).long().sum(1)
    prompt = pick(audio, inputs["audio.latents"], inputs["audio_silence.latents"])
    return inputs["video.clip_tokens"], sync, torch.tensor(video).bool(), hidden, length, swap_axes(prompt)


def captured(modules: dict[str, torch.nn.Module], call) -> dict[str, torch.Tensor]:
    """The outputs of these modules during a call."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out}))
        for name, module in modules.items()
    ]
    call()
    for handle in handles:
        handle.remove()
    return found

"""Gated residual: x + gate·branch, alone and with the LayerNorm and modulation that follow it in a block.

B batch, L tokens, W width.
"""

from torch import Tensor

from .adaln import layer_norm_modulate


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x and branch (B, L, W), gate (B, W) in float32 -> (B, L, W) in the dtype of x."""
    return (x + gate.unsqueeze(1) * branch).to(x.dtype)


def gated_residual_layer_norm_modulate(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """x and branch (B, L, W), gate, shift and scale (B, W) in float32 -> new x, its modulated norm, (B, L, W) each."""
    x = gated_residual(x, branch, gate)
    return x, layer_norm_modulate(x, shift, scale)

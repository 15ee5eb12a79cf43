"""What DeepSpeed is told of a model."""

from typing import Any

from ..core.config import ZeroConfig

NEVER = 10**9  # steps between lines that DeepSpeed prints


def deepspeed_config(
    zero: ZeroConfig, clip: float, precision: str, micro_batch: int, accumulation: int, on_gpu: bool
) -> dict[str, Any]:
    """Of a model that is trained. Gradients are accumulated in fp32 at every stage."""
    stage: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": on_gpu and zero.stage > 0,
        "contiguous_gradients": True,
        "round_robin_gradients": False,
    }
    if zero.offload_optimizer:
        stage["offload_optimizer"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip if zero.stage > 0 else 0.0,  # without ZeRO the engine clips by itself
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16" and zero.stage == 0:
        # Without ZeRO, DeepSpeed keeps fp32 weights and gradients only under autocast.
        config |= {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    elif precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def frozen_config(precision: str) -> dict[str, Any]:
    """Of a model that is sharded and not trained. Small weights are sharded too: after a backward to the inputs
    DeepSpeed keeps only some of them gathered."""
    stage = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage, "steps_per_print": NEVER}
    return config | ({"bf16": {"enabled": True}} if precision == "bf16" else {})

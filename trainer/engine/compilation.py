"""Compilation of a model's transformer blocks, and how many versions of their code it made."""

import torch
from torch import nn

from ...models.blocks import JointBlock
from ...models.networks import Network
from ...models.released.audiox import ReleasedAudioX
from ...models.released.backbone import ReleasedBlock

# Versions of a block's code in one process. There is one for each combination of dtype, of gradients at the weights
# and at the inputs, and of the first length of the texts or any other. A distillation has up to 16. Beyond torch's own
# limit of 8 it would run its blocks uncompiled.
RECOMPILE_LIMIT = 32


def compile_blocks(model: Network, conditioner: bool = False, sharded: bool = False) -> None:
    """Compiles each transformer block. Blocks of one shape share their code, so it is compiled once. With `conditioner`
    its temporal transformers and its fusion are compiled too, each as a whole.

    With `sharded` ZeRO-3 will shard the model. Of its joint blocks then `forward` alone is compiled, without what
    DeepSpeed does around a call, and the model cannot be copied afterwards."""
    from torch._dynamo import config  # takes a second, which runs without compilation save

    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    parts: list[nn.Module] = []
    if conditioner and isinstance(model, ReleasedAudioX):
        parts = [model.maf_block, model.video_conditioner.Temp_transformer]
    elif conditioner:
        parts = [getattr(model.conditioner, name) for name in ("video", "audio", "fusion")]
    for module in (*model.backbone.blocks, *parts):
        if sharded and isinstance(module, JointBlock):
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
        else:
            module.compile()


def compiled_apart(module: nn.Module) -> bool:
    """Whether `forward` alone of this module is compiled."""
    return "forward" in vars(module)


def compiled_versions() -> int:
    """The versions of a block's code that this process has compiled."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    return max(len(_debug_get_cache_entry_list(kind.forward.__code__)) for kind in (JointBlock, ReleasedBlock))


def compilation_warnings() -> list[str]:
    """Warns where the limit is reached: any further version runs uncompiled."""
    if compiled_versions() < RECOMPILE_LIMIT:
        return []
    return [
        f"{RECOMPILE_LIMIT} versions of a block are compiled, which is the limit; inputs that need another one run "
        "uncompiled. TORCH_LOGS=recompiles prints the reasons; a larger model.text.pad_to_multiple_of means fewer "
        "text lengths"
    ]

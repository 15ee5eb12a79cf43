"""Names of the weights of Synchformer's visual branch as they were released, and ours for them."""

from torch import Tensor

from .synchformer import SynchformerConfig

PREFIX = "vfeat_extractor."  # of the visual branch in the released file, which holds the rest of the model too
WHOLE = {"cls_token": "token", "pos_embed": "space_position", "temp_embed": "time_position"}
# Of modules with a weight and a bias.
MODULES = {"patch_embed_3d.proj": "embed", "norm": "norm"}
# An embedding of single images, which the released model is made with and never calls.
UNUSED = ("patch_embed.proj.weight", "patch_embed.proj.bias")
BLOCK = {
    "norm3": "time_norm",
    "timeattn.qkv": "time.qkv",
    "timeattn.proj": "time.out",
    "norm1": "space_norm",
    "attn.qkv": "space.qkv",
    "attn.proj": "space.out",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
GATHER = {
    "norm1": "norm",
    "self_attn.out_proj": "out",
    "norm2": "mlp_norm",
    "linear1": "mlp.0",
    "linear2": "mlp.2",
}


def released_names(depth: int) -> dict[str, str | None]:
    """Every name of the visual branch in the released file -> ours, None for what is not used."""
    modules = dict(MODULES)
    for i in range(depth):
        modules |= {f"blocks.{i}.{theirs}": f"blocks.{i}.{ours}" for theirs, ours in BLOCK.items()}
    modules |= {f"spatial_attn_agg.{theirs}": f"gather.{ours}" for theirs, ours in GATHER.items()}
    table: dict[str, str | None] = {**WHOLE, "spatial_attn_agg.cls_token": "gather.token"}
    for kind in ("weight", "bias"):
        table |= {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items()}
        table[f"spatial_attn_agg.self_attn.in_proj_{kind}"] = f"gather.qkv.{kind}"
    table |= dict.fromkeys(UNUSED)
    return {PREFIX + theirs: ours for theirs, ours in table.items()}


def from_released(state: dict[str, Tensor], config: SynchformerConfig) -> dict[str, Tensor]:
    """The visual branch of a released state dict under our names, in float32.

    Raises ValueError where a name of it is missing or not known.
    """
    theirs = {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    table = released_names(config.depth)
    missing, extra = sorted(table.keys() - theirs.keys()), sorted(theirs.keys() - table.keys())
    if missing or extra:
        raise ValueError(
            f"not Synchformer's released weights: of the names {PREFIX}* {len(missing)} are missing {missing[:2]}, "
            f"{len(extra)} are not known {extra[:2]}"
        )
    return {ours: theirs[name].float() for name, ours in table.items() if ours is not None}

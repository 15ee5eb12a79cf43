"""What training adapters alone takes: parameters, bytes and operations."""

import pytest
import torch

from audiox_trainer.models.lora import LoraConfig, add_adapters
from audiox_trainer.models.networks import build_network
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.gpu_specs import GPUS
from audiox_trainer.trainer.cost.operations import forward_flops, training_flops
from audiox_trainer.trainer.cost.plan_report import plan_figures
from audiox_trainer.trainer.cost.planned_time import Cluster
from audiox_trainer.trainer.cost.role_bytes import planned_roles
from audiox_trainer.trainer.cost.workload import workload
from tests.helpers.released_weights import SIZES
from tests.helpers.run_script import measured_plan

# A tenth of the sizes, by --set.
TENTH = {
    "finetune_lora": (
        "model.released.width=768",
        "model.released.heads=32",
        "model.released.hidden=2048",
        "model.released.depth=9",
        "model.released.fusion_depth=2",
    ),
    "finetune_lora_2p7b": (
        'model.backbone={"width": 768, "depth": 9, "heads": 12, "mlp_hidden": 2624}',
        'model.fusion={"queries": 64, "width": 384, "depth": 4, "heads": 6}',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trained"), [("finetune_lora", 16_711_680), ("finetune_lora_2p7b", 21_178_368)])
def test_states_of_the_full_size_are_small(root, name, trained):
    config = load_pretrain_config(root / "configs" / f"{name}.json")
    with torch.device("meta"):
        network = build_network(config.model)
        add_adapters(network, config.lora)
    sizes = {kind: [p.numel() for p in network.parameters() if p.requires_grad == kind] for kind in (True, False)}
    (role,) = planned_roles(config, sizes[True], [], sizes[False])
    found = role.bytes(0, 1)
    assert role.count == trained
    assert found.gradients + found.optimizer == 14 * trained + 4 < 1e9
    assert found.weights == 2 * sum(sizes[False]) + 6 * trained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune_lora", pytest.param("finetune_lora_2p7b", marks=pytest.mark.long)])
def test_weights_in_8_bits_take_half(root, name):
    """All but what lies outside the blocks, and vectors."""
    plain, eight = (
        workload(load_pretrain_config(root / "configs" / f"{name}.json", [f"lora.int8={value}"]))
        for value in ("false", "true")
    )
    assert plain.parameters == eight.parameters
    (before,), (after,) = plain.roles, eight.roles
    assert before.sizes == after.sizes and before.int8 == 0
    in_8_bits = sum(before.frozen) - sum(after.frozen)
    assert 0 < after.int8 - in_8_bits < 0.003 * in_8_bits  # the scales
    assert before.bytes(0, 1).weights - after.bytes(0, 1).weights == 2 * in_8_bits - after.int8
    assert in_8_bits > 0.85 * sum(before.frozen)
    figures = [plan_figures(work, Cluster(GPUS["4090"], 1)) for work in (plain, eight)]  # 8 bits: where they may be
    assert [[row["stage"] for row in found["memory"]] for found in figures] == [[0, 1, 2, 3], [1, 2]]


@pytest.mark.parametrize("name", ["ours", "released"])
def test_operations(small, name):
    """Nothing is computed for a frozen weight, nor for what comes before the first adapter."""
    model = small.model if name == "ours" else SIZES.model
    blocks = "backbone.blocks" if name == "ours" else "model.model.transformer.layers"
    forward = forward_flops(model, 16)["total"]
    last, all_blocks = (LoraConfig(1, (f"{blocks}.{which}.*",)) for which in ("1", "*"))
    after, through = (training_flops(model, 16, lora) for lora in (last, all_blocks))
    assert forward < after < through < training_flops(model, 16) == 3 * forward


@pytest.mark.long
@pytest.mark.parametrize("name", TENTH)
def test_resident_memory_is_as_planned_at_a_tenth_of_the_size(tmp_path, name):
    settings = ("compile=false", "precision=fp32", "global_batch=4", "micro_batch=2")
    # Buffers that are filled, so that they are resident.
    bucket = "deepspeed.zero_optimization.reduce_bucket_size=1000000"
    every = (*(f"training.{setting}" for setting in settings), *TENTH[name], bucket)
    found, said = measured_plan(name, every, tmp_path)
    assert found["planned"] == found["counted"]
    assert found["measured_peak"] == pytest.approx(found["planned_peak"], rel=0.15), said

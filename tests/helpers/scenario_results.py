"""Launches of training_scenarios.py whose results several test files share, and comparisons of checkpoints."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from audiox_trainer.trainer.checkpoint import load
from tests.helpers.launch_ranks import launch_ranks

KINDS = ("weights", "exp_avg", "exp_avg_sq", "ema")
CURVE = (
    "training.steps=20",
    "optimizer.lr=3e-3",
    "optimizer.max_grad_norm=1.8",
    "optimizer.weight_decay=0.1",
    "optimizer.eps=1e-6",
)
# The last block leaves this one without a gradient. Where nothing is sharded AdamW passes over it; under ZeRO its
# gradient counts as zero, and it decays. It changes nothing that the model says.
UNREAD = "backbone.blocks.1.condition.q_norm"


SCENES = "SCENES"  # in an override: the folder of the launch's shards
# Trains on the one stream and is validated on the other.
VALIDATED = (
    f'data.streams=[{{"path": "{SCENES}/audio", "tasks": {{"T2A": 1, "TV2A": 1, "inpainting": 1}}}}]',
    f'validation.streams=[{{"path": "{SCENES}/music", "tasks": {{"T2M": 1, "TV2M": 1, "completion": 1}}}}]',
    "validation.every=2",
    "validation.samples=16",
    "validation.levels=[0.2, 0.7]",
    "checkpoint.keep_last=1",
)
# At stage 3 DeepSpeed leaves small weights whole; then none.
SHARD_ALL = 'deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0}}'
SCORED = (*VALIDATED, "validation.every=0", 'sampling={"sampler": "euler", "steps": 4, "guidance": 2.0}')


@dataclass(frozen=True)
class Item:
    """One scenario of a launch. `folder` is another item's folder if it resumes that."""

    name: str
    scenario: str
    overrides: Sequence[str] = ()
    folder: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


def _shards_weights(item: Item) -> bool:
    """Where weights were sharded once, DeepSpeed's slower linear layers stay in every later model of the process."""
    return any("stage=3" in override or "sharded=true" in override for override in item.overrides)


class Launch:
    """The results of a launch's ranks and their folders, by the items' names. Of several workers of pytest-xdist that
    ask for the same in one folder, the first launches it, and the others wait and read."""

    def __init__(
        self,
        ranks: int,
        scenes: Path,
        base: Path,
        items: Sequence[Item],
        module: str = "tests.helpers.training_scenarios",
    ) -> None:
        self.base, self.ranks = base, ranks
        items = sorted(items, key=_shards_weights)  # stable: what resumes another comes after it
        self.folders = {item.name: base / (item.folder or item.name) for item in items}
        plan = [
            {
                "scenario": item.scenario,
                "folder": str(self.folders[item.name]),
                "scenes": str(scenes),
                "overrides": [override.replace(SCENES, str(scenes)) for override in item.overrides],
                "arguments": item.arguments,
            }
            for item in items
        ]
        file, done = base / f"plan_{ranks}.json", base / f"plan_{ranks}_done.json"
        with FileLock(base / f"plan_{ranks}.lock"):
            if done.exists() and done.read_text() == json.dumps(plan):
                return
            file.write_text(json.dumps(plan))
            launch_ranks(ranks, module, str(file), timeout=1500)
            file.replace(done)

    def results(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((self.folders[name] / f"rank_{rank}.json").read_text()) for rank in range(self.ranks)]

    def checkpoint(self, name: str, step: int) -> Path:
        return self.folders[name] / "checkpoints" / f"step_{step:08d}"


def stage(number: int, *more: str) -> tuple[str, ...]:
    return (f"zero.stage={number}", *more)


def resumed(name: str, *overrides: str) -> list[Item]:
    """A run in one piece, and one that stops in the middle of an epoch and resumes from its checkpoint."""
    return [
        Item(f"{name} through", "whole", overrides),
        Item(f"{name} broken", "whole", overrides, arguments={"stop": 7}),
        Item(f"{name} resumed", "whole", overrides, folder=f"{name} broken", arguments={"resume": True}),
    ]


# Sizes, stages and precisions whose bytes `planning.py` has to know.
SIZES = {"small": (), "larger": ("model.backbone.width=96", "model.backbone.depth=3", "model.fusion.depth=2")}
# Left to itself DeepSpeed keeps small weights gathered at stage 3, here all of them, and what is used again soon.
KEPT = ("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance")
SHARES = "deepspeed=" + json.dumps({"zero_optimization": dict.fromkeys(KEPT, 0)})
PLANNED = {
    f"planned {size} {number} {precision}": stage(number, f"training.precision={precision}", *SIZES[size])
    for size in SIZES
    for number in range(4)
    for precision in ("fp32", "bf16")
}
GROUPS = "deepspeed=" + json.dumps({"zero_optimization": {"sub_group_size": 20_000}})
PLANNED["planned in groups"] = stage(3, GROUPS)
PLANNED["planned accumulated"] = stage(2, "training.micro_batch=2")
PLANNED["planned in shares"] = stage(3, SHARES)
PLANNED["planned in shares, accumulated"] = stage(3, SHARES, "training.micro_batch=2", "training.precision=bf16")
# Updates of two micro-batches on one rank, of one on two.
OFFLOADED = {
    f"offloaded {number} {precision}": stage(number, f"training.precision={precision}", "zero.offload_optimizer=true")
    for number in (1, 2, 3)
    for precision in ("fp32", "bf16")
}

TWO_RANKS = [
    *[Item(f"curve {s}", "losses", stage(s, *CURVE)) for s in range(4)],
    Item("curve 2 accumulated", "losses", stage(2, *CURVE, "training.micro_batch=2")),
    *[Item(f"poison {s}", "poisoned", stage(s), arguments={"at": 2, "index": 1}) for s in range(4)],
    Item("poison bf16", "poisoned", stage(2, "training.precision=bf16"), arguments={"at": 2, "index": 1}),
    Item("poison accumulated", "poisoned", stage(2, "training.micro_batch=2"), arguments={"at": 2, "index": 3}),
    Item("poison first", "poisoned", stage(2), arguments={"at": 0, "index": 0}),
    Item("poison first 0", "poisoned", stage(0), arguments={"at": 0, "index": 0}),
    Item("poison on", "whole", stage(2, "training.max_skipped_steps=2"), arguments={"poison": list(range(3, 99))}),
    *resumed("fp32", *stage(2)),
    *resumed("bf16", *stage(2, "training.precision=bf16")),
    Item("asked", "asked", stage(2, "checkpoint.every=100"), arguments={"asks": [[4, [1]], [8, [0, 1]]]}),
    Item("async_save", "async_save", stage(2, "checkpoint.async_save=true")),
    Item("async_save fails", "async_save", stage(2, "checkpoint.async_save=true"), arguments={"fails": True}),
    *[Item(f"waits {s}", "waits", stage(s, "training.precision=bf16", "training.micro_batch=2")) for s in (1, 2, 3)],
    Item("file too large", "file_too_large", stage(2)),
    Item("full disk", "full_disk", stage(2)),
    Item("validated", "whole", stage(3, *VALIDATED)),
    Item("scored", "scored", stage(3, *SCORED)),
    Item("reload 3", "reload", stage(3, *CURVE), arguments={"source": "curve 2"}),
    Item("reload 0", "reload", stage(0, *CURVE), arguments={"source": "curve 2"}),
    *[Item(name, "counted", overrides) for name, overrides in (PLANNED | OFFLOADED).items()],
]
OTHERS = [
    (number, precision)
    for number in range(4)
    for precision in ("fp32", "bf16")
    if number != 2  # which TWO_RANKS has
]
TWO_RANKS_LONG = [
    *[item for n, p in OTHERS for item in resumed(f"{n} {p}", *stage(n, f"training.precision={p}"))],
    *[
        Item(f"poison {n} bf16", "poisoned", stage(n, "training.precision=bf16"), arguments={"at": 2, "index": 1})
        for n in (0, 1, 3)
    ],
    *[
        Item(f"poison {n} accumulated", "poisoned", stage(n, "training.micro_batch=2"), arguments={"at": 2, "index": 3})
        for n in (0, 1, 3)
    ],
    *[Item(f"curve {n} accumulated", "losses", stage(n, *CURVE, "training.micro_batch=2")) for n in (0, 1, 3)],
    *[
        Item(f"curve {n} recomputed", "losses", stage(n, *CURVE, "training.activation_checkpointing=true"))
        for n in (0, 2, 3)
    ],
    Item("curve 3 without SwiGLU", "losses", stage(3, *CURVE, "training.recompute_swiglu=true")),
    Item("curve 2 offloaded", "losses", stage(2, *CURVE, "zero.offload_optimizer=true")),
    Item("curve 2 compiled", "losses", stage(2, *CURVE, "training.compile=true")),
    Item("curve 3 compiled", "losses", stage(3, *CURVE, "training.compile=true", SHARD_ALL)),
]
FOUR_RANKS = [
    *[Item(f"four {n}", "losses", stage(n, *CURVE, "training.micro_batch=2")) for n in range(4)],
    Item("four from two", "reload", stage(3, *CURVE, "training.micro_batch=2"), arguments={"source": "curve 2"}),
    Item("four from zero", "reload", stage(2, *CURVE, "training.micro_batch=2"), arguments={"source": "curve 0"}),
]
ONE_RANK = [
    Item("one 0", "losses", stage(0, *CURVE, "training.micro_batch=8")),
    Item("one 0 accumulated", "losses", stage(0, *CURVE, "training.micro_batch=2")),
    Item("one 2", "losses", stage(2, *CURVE, "training.micro_batch=8")),
    Item("run", "whole", stage(2, "checkpoint.every=1", "checkpoint.keep_last=0", "training.precision=bf16")),
    Item("run again", "whole", stage(2, "training.precision=bf16")),
    Item("one from two", "reload", stage(2, *CURVE), arguments={"source": "curve 2", "steps": 3}),
    Item("one from three", "reload", stage(1, *CURVE), arguments={"source": "curve 3"}),
    Item("one from zero", "reload", stage(3, *CURVE), arguments={"source": "curve 0"}),
    Item("preview", "preview", stage(2)),
    Item("validated on one", "whole", stage(1, *VALIDATED)),
    Item("scored on one", "scored", stage(1, *SCORED)),
    Item("not validated", "whole", stage(1, *VALIDATED, "validation.every=0")),
    Item("process groups", "process_groups", stage(2)),
    *[Item(name, "counted", overrides, folder=f"{name}, one") for name, overrides in (PLANNED | OFFLOADED).items()],
]


def state(folder: Path, role: str = "model", kinds: Sequence[str] = KINDS) -> dict[str, torch.Tensor]:
    """All trained tensors of a role in a checkpoint, whole."""
    parts = {kind: load.full_tensors(folder, role, kind) for kind in kinds}
    return {f"{kind}/{name}": tensor for kind, tensors in parts.items() for name, tensor in tensors.items()}


def differing(first: Path, second: Path, role: str = "model", kinds: Sequence[str] = KINDS) -> list[str]:
    """The tensors and counts of a role that differ between two checkpoints."""
    a, b = state(first, role, kinds), state(second, role, kinds)
    names = [name for name in a if not torch.equal(a[name], b[name])]
    updates = [load.read_manifest(f)["roles"][role]["updates"] for f in (first, second)]
    return names if updates[0] == updates[1] else [*names, f"updates: {updates}"]

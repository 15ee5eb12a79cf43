"""Compiles every Triton kernel for an H100 on a machine without one, at the sizes of configs/2p7b.json in bfloat16, and
prints what the assembler says: registers, bytes spilled, shared memory, whether the tensor cores' wgmma is used."""

import json
import os
import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from audiox_trainer.kernels import adaln, gated_residual, joint_attention, swiglu

WIDTH, HEAD = 1536, 64


def build(kernel: Any, types: str, constants: dict[str, Any], **launch: int) -> dict[str, Any]:
    """`types` of the arguments in order, constants left out: b a pointer to bfloat16, f to float32, l to int32, i an
    integer, x a float."""
    names = {"b": "*bf16", "f": "*fp32", "l": "*i32", "i": "i32", "x": "fp32"}
    given = iter(types)
    signature = {name: "constexpr" if name in constants else names[next(given)] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    ptxas = os.path.join(os.path.dirname(nvidia.__file__), "bin", "ptxas")
    with tempfile.NamedTemporaryFile(mode="w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [ptxas, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert spills and registers, said
    return {
        "registers": int(registers[1]),
        "spills": int(spills[1]) + int(spills[2]),
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma" in compiled.asm["ptx"],
    }


def main() -> None:
    row = adaln.row_launch(WIDTH)
    warps, block = {"num_warps": row["num_warps"]}, {"BLOCK": row["BLOCK"]}
    chunk = {**block, "ROWS": adaln.ROWS}
    builds = {
        "adaln forward": build(adaln._forward, "bffbffiiix", block, **warps),
        "adaln backward": build(adaln._backward, "bbfffbffiiii", chunk, **warps),
        "swiglu forward": build(swiglu._forward, "bbi", {"BLOCK": swiglu.BLOCK}),
        "swiglu backward": build(swiglu._backward, "bbbi", {"BLOCK": swiglu.BLOCK}),
        "attention rotate": build(joint_attention._rotate, "bibffbiiiix", {"TILE": 64, "D": HEAD}),
        "attention inner": build(joint_attention._inner, "bbfiiii", {"TILE": 64, "D": HEAD}),
    }
    for norm in (True, False):
        name = "with norm" if norm else "alone"
        forward, backward = {**block, "NORM": norm}, {**chunk, "NORM": norm}
        builds[f"gated residual {name} forward"] = build(gated_residual._forward, "bbfffbbffiiix", forward, **warps)
        builds[f"gated residual {name} backward"] = build(
            gated_residual._backward, "bbffffbbbbfffiiii", backward, **warps
        )
    for name, kernel, types, tiles in (
        ("forward", joint_attention._forward, "bbffbiilbbbfiiixx", joint_attention.forward_tiles),
        ("queries", joint_attention._backward_queries, "bbffbbfiilbbbbffiiixxx", joint_attention.backward_tiles),
        ("keys", joint_attention._backward_keys, "bbffbfiilbbbbffiiixxx", joint_attention.backward_tiles),
    ):
        t = tiles(HEAD, torch.bfloat16)
        constants = {"PRECISION": "tf32", "QUERIES": t.queries, "KEYS": t.keys, "D": HEAD}
        for cut in (False, True) if name != "queries" else (True,):
            stream = "condition" if cut else "latent"
            builds[f"attention {name} {stream}"] = build(
                kernel, types, {**constants, "CUT": cut}, num_warps=t.num_warps, num_stages=t.num_stages
            )
    print(json.dumps(builds))


if __name__ == "__main__":
    main()

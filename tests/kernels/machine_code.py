"""Compiles every launch of the Triton kernels for GPUs that need not be here, at the sizes of configs/2p7b.json in
bfloat16, and reads the machine code.

    python -m tests.kernels.machine_code 90 100   # JSON: a row per kernel and compute capability
    python -m tests.kernels.machine_code --write  # the table of docs/lab/performance.md
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # decided when kernels are imported
    os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends import nvidia

from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.engine.kernel_cases import BlockShape
from tests.kernels.launches import compiled_only, launch_block

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "lab" / "performance.md"
GPUS = {80: "A100", 90: "H100", 100: "B200"}
MARK = re.compile(r"(?<=<!-- machine code, Triton )(\S+) -->\n.*?(?=\n\n)", re.S)
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}  # bytes of a multiprocessor
REGISTERS, WARPS, BLOCKS, RESERVED = 65536, 64, 32, 1024  # of a multiprocessor; bytes that each block takes by itself
BATCH = 30
ABSENT = "–"  # in the table: a kernel that a GPU cannot run
TENSOR_CORES = r"\bHGMMA|\bHMMA|\bUTC\w*MMA"  # on 90, 80 and 100


@dataclass(frozen=True)
class Code:
    """The resources that a kernel needs on a GPU."""

    sm: int  # compute capability
    kernel: str
    warps: int
    registers: int  # per thread
    shared: int  # bytes per block
    blocks: int  # per multiprocessor
    stack: int  # bytes per thread: what registers did not hold
    products: int  # instructions of the tensor cores
    multiplies: bool  # has products in its source

    def cell(self) -> str:
        """In the table: registers, KiB of shared memory, blocks per multiprocessor, and what does not fit."""
        spilled = f", {self.stack} bytes of stack" if self.stack else ""
        return f"{self.registers}, {round(self.shared / 1024, 1):g}, {self.blocks}{spilled}"


def compiled(sm: int, head: int) -> list[Code]:
    """A row per kernel and set of flags: of several specializations the one that needs most registers."""
    found: dict[int, tuple[str, Any]] = {}

    def seen(kernel: Any, code: Any, arguments: dict[str, Any]) -> None:
        flags = [f"{name}={value}" for name, value in arguments.items() if isinstance(value, bool)]
        where = f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"
        found[id(code)] = " ".join([where, *flags]), code

    shape = BlockShape.from_model(load_pretrain_config(ROOT / "configs" / "2p7b.json").model, BATCH)
    with compiled_only(sm, seen):
        launch_block(replace(shape, heads=shape.width // head, head_width=head), sm)
    codes: dict[str, Code] = {}
    for name, kernel in found.values():
        code = read(sm, name, kernel)
        codes[name] = max(codes.get(name, code), code, key=lambda code: (code.stack, code.registers))
    return list(codes.values())


def read(sm: int, name: str, kernel: Any) -> Code:
    """The assembler's figures for a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    said = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert said, usage
    registers, stack, local = (int(number) for number in said.groups())
    if re.search(r"\b(LDL|STL)\b", code):  # local memory, which is what spills go to
        stack = max(stack, 1)
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32) // warps
    blocks = min(by_registers, SHARED[sm] // (shared + RESERVED), WARPS // warps, BLOCKS)
    products, multiplies = len(re.findall(TENSOR_CORES, code)), "tt.dot" in kernel.asm["ttir"]
    return Code(sm, name, warps, registers, shared, blocks, stack + local, products, multiplies)


def _tool(name: str, *arguments: str) -> str:
    """Output of one of the assembler's tools, which come with Triton."""
    command = [str(Path(nvidia.__file__).parent / "bin" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(codes: list[Code]) -> list[str]:
    """Lines of Markdown, a row per kernel, without a head."""
    rows: dict[str, dict[int, Code]] = {}
    for code in codes:
        rows.setdefault(code.kernel, {})[code.sm] = code
    columns = sorted({code.sm for code in codes})
    lines = []
    for name, row in rows.items():
        cells = [row[sm].cell() if sm in row else ABSENT for sm in columns]
        lines.append(f"| `{name}` | {next(iter(row.values())).warps} | {' | '.join(cells)} |")
    return lines


def recorded() -> tuple[str, dict[str, dict[str, str]]]:
    """The release of Triton that the table in docs/lab/performance.md is of, and each kernel's cells by column."""
    block = MARK.search(TABLE.read_text())
    assert block, f"{TABLE} has no table of machine code"
    lines = [line for line in block[0].splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return block[1], {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="what the assembler makes of the Triton kernels")
    parser.add_argument("capabilities", nargs="*", type=int, default=list(GPUS), help="80, 90, 100")
    parser.add_argument("--head", type=int, default=64, help="width of the attention's heads")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {TABLE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    codes = [code for sm in arguments.capabilities for code in compiled(sm, arguments.head)]
    if not arguments.write:
        print(
            json.dumps(
                {"triton": triton.__version__, "codes": [asdict(code) | {"cell": code.cell()} for code in codes]}
            )
        )
        return
    columns = ["kernel", "warps", *(GPUS[sm] for sm in arguments.capabilities)]
    lines = [f"{triton.__version__} -->", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *table(codes)]
    text, count = MARK.subn(lambda _: "\n".join(lines), TABLE.read_text())
    assert count == 1, f"{TABLE} has {count} tables of machine code"
    TABLE.write_text(text)


if __name__ == "__main__":
    main()

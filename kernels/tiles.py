"""How many tokens the kernels of the joint attention hold at a time, by GPU and head width.

tiles.json has the choices for half precision: by compute capability, head width and kernel the queries and keys of a
tile, warps and stages. They are by what compiles for each GPU, until `launch/bench.py tiles` writes there what is the
fastest on one.
"""

import functools
import json
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Tiles:
    """Tokens of a tile, and how the kernel that holds them is launched."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class AttentionTiles:
    """The tiles of each kernel of the joint attention that multiplies."""

    forward: Tiles
    queries: Tiles  # the backward passes to the queries, and to keys and values
    keys: Tiles


KERNELS = tuple(field.name for field in fields(AttentionTiles))
FULL = AttentionTiles(Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1))  # for float32


def attention_tiles(head: int, dtype: torch.dtype, capability: tuple[int, int]) -> AttentionTiles:
    """The table's row for the newest GPU that is not newer than `capability`, and the widest head not wider."""
    if dtype == torch.float32:
        return FULL
    table = read_tiles()
    heads = table[max((c for c in table if c <= capability), default=min(table))]
    return heads[max((width for width in heads if width <= head), default=min(heads))]


@functools.cache
def read_tiles() -> dict[tuple[int, int], dict[int, AttentionTiles]]:
    """By compute capability and head width."""
    return {
        _capability(name): {
            int(width): AttentionTiles(**{kernel: Tiles(*row) for kernel, row in kernels.items()})
            for width, kernels in heads.items()
        }
        for name, heads in json.loads(TABLE.read_text()).items()
    }


def write_tiles(capability: tuple[int, int], head: int, tiles: AttentionTiles, table: Path = TABLE) -> None:
    """Replaces one row of the table; running processes keep theirs."""
    rows = json.loads(table.read_text())
    row = {kernel: list(astuple(getattr(tiles, kernel))) for kernel in KERNELS}
    rows.setdefault(".".join(map(str, capability)), {})[str(head)] = row
    lines = [
        f'  "{name}": {{\n' + ",\n".join(f'    "{width}": {json.dumps(heads[width])}' for width in heads) + "\n  }"
        for name, heads in sorted(rows.items(), key=lambda item: _capability(item[0]))
    ]
    table.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _capability(name: str) -> tuple[int, int]:
    major, minor = name.split(".")
    return int(major), int(minor)

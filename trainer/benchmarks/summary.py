"""Results of benchmarks as text: the machine, the operations, aligned tables."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ..core.hardware import description_lines


@dataclass(frozen=True)
class Column:
    """A column of numbers, or of text if it has no format. A row without the key leaves it empty."""

    header: str
    key: str
    format: str = ""
    scale: float = 1  # from the result's unit to the one shown

    def cell(self, row: dict[str, Any]) -> str:
        if self.key not in row:
            return ""
        return format(self.scale * row[self.key], self.format) if self.format else str(row[self.key])


SPREAD_COLUMNS = (
    Column("", "name"),
    Column("median", "median", ".2f"),
    Column("lowest", "low", ".2f"),
    Column("highest", "high", ".2f"),
)


def spread(values: Iterable[float], name: str = "median") -> dict[str, float]:
    """The median under `name`, the lowest and the highest."""
    ordered = sorted(values)
    return {name: statistics.median(ordered), "low": ordered[0], "high": ordered[-1]}


def format_table(rows: Iterable[dict[str, Any]], columns: Sequence[Column]) -> list[str]:
    cells = [[column.cell(row) for column in columns] for row in rows]
    align = ["right" if column.format else "left" for column in columns]
    headers = [column.header for column in columns]
    return tabulate(cells, headers, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()


def heading(result: dict[str, Any]) -> list[str]:
    """The machine, and the operations of a forward pass and their implementations if the result has them."""
    lines = description_lines(result["host"])
    if "forward_flops" in result:
        counts = ", ".join(f"{name} {flops / 1e9:.4g}" for name, flops in result["forward_flops"].items())
        lines.append(f"forward of a sample, GFLOP: {counts}")
    if "kernels" in result:
        lines.append("kernels: " + ", ".join(f"{op} {name}" for op, name in result["kernels"].items()))
    return lines

"""Which implementation of each operation a run uses: as configured, as a table says, or measured at start."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..kernels.ops import BACKENDS, OPS, KernelsConfig, Ops, available, missing, resolve
from .config import BaseConfig
from .files import write_json
from .kernel_cases import Case, Shape, cases
from .timing import interleaved

if TYPE_CHECKING:
    from .zero import World  # imports DeepSpeed, which making sound does without

TABLE = "kernels.json"  # in a run's folder: what was measured when it began, so that it goes on with the same
ROUNDS, WARM_UPS = 5, 2


@dataclass(frozen=True)
class Choice:
    """A backend for each operation, and why it was taken."""

    names: dict[str, str]
    reasons: dict[str, str]

    def ops(self) -> Ops:
        return resolve(self.names)

    def lines(self) -> list[str]:
        return [f"{op}: {self.names[op]} ({self.reasons[op]})" for op in OPS]


def check(wanted: KernelsConfig, precision: str) -> None:
    """Refuses what cannot run here, before any process group is made. Raises ValueError, FileNotFoundError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for op in OPS:
        name = getattr(wanted, op)
        if name != "auto" and (why := missing(name, device, dtype)):
            raise ValueError(f"kernels.{op}: {name!r} {why}")
    if wanted.table:
        read_table(Path(wanted.table))


def choose(config: BaseConfig, world: "World", output: Path, precision: str) -> Ops:
    """The operations of a run in `output`, the same on all ranks; rank 0 chooses and says what."""
    chosen: list[Choice | None] = [None]
    if world.rank == 0:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        held = output / TABLE
        shape = Shape.of(config.model, config.training.micro_batch)
        table = read_table(Path(config.kernels.table)) if config.kernels.table else None
        if held.exists():
            table = read_table(held)
        choice, measured = decide(config.kernels, shape, world.device, dtype, table, config.training.compile)
        if measured:
            output.mkdir(parents=True, exist_ok=True)
            write_json(held, {"rows": [*(table or []), *measured]})
        print("kernels: " + "; ".join(choice.lines()), flush=True)
        chosen = [choice]
    torch.distributed.broadcast_object_list(chosen)
    assert chosen[0] is not None
    return chosen[0].ops()


def decide(
    wanted: KernelsConfig,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    table: list[dict[str, Any]] | None = None,
    compiled: bool = False,
) -> tuple[Choice, list[dict[str, Any]]]:
    """A choice, and what was measured for it as rows of a table.

    "auto" takes the fastest forward and backward of the table's rows for this device, dtype and shape; where there are
    none it measures. With one candidate, as on a CPU, there is nothing to measure: there the reference is the faster of
    the two that run (docs/performance.md).
    """
    names: dict[str, str] = {}
    reasons: dict[str, str] = {}
    measured: list[dict[str, Any]] = []
    ready: dict[str, Case] | None = None
    for op in OPS:
        name = getattr(wanted, op)
        candidates = available(op, device, dtype) if device.type == "cuda" else ["reference"]
        if name != "auto":
            names[op], reasons[op] = name, "as configured"
            continue
        if len(candidates) == 1:
            names[op], reasons[op] = candidates[0], f"auto on {device.type}"
            continue
        fitting = [row for row in table or [] if row["op"] == op and fits(row, shape, device, dtype)]
        rows = [row for row in fitting if row["backend"] in candidates]
        where = "table"
        if not rows:
            ready = ready or cases(shape, device, dtype)
            rows = measure(op, ready[op], candidates, shape, device, dtype, compiled)
            measured += rows
            where = "measured"
        ms = {row["backend"]: row["forward_ms"] + row["backward_ms"] for row in rows}
        names[op] = min(ms, key=ms.__getitem__)
        listed = ", ".join(f"{b} {ms[b]:.3g} ms" for b in sorted(ms, key=ms.__getitem__))
        reasons[op] = f"auto, {where}: {listed}"
    return Choice(names, reasons), measured


def measure(
    op: str,
    case: Case,
    backends: list[str],
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    rounds: int = ROUNDS,
    inner: int = 10,
) -> list[dict[str, Any]]:
    """Rows of a table: medians of forward and backward, the backends taking turns. A backend that fails says so and
    takes no part."""
    calls = {}
    for backend in backends:
        implementation = BACKENDS[op][backend]
        if compiled and backend in ("reference", "sdpa"):  # the others are not made faster by it
            implementation = torch.compile(implementation)
        try:
            pair = [case.timed(implementation, backward) for backward in (False, True)]
            for call in pair:
                call()
        except RuntimeError as error:
            print(f"kernels: {op}: {backend} does not run here: {str(error).splitlines()[0]}", flush=True)
            continue
        calls[backend] = pair
    times = [
        interleaved({backend: pair[way] for backend, pair in calls.items()}, rounds, inner, WARM_UPS, device)
        for way in (0, 1)
    ]
    return [
        {"op": op, "backend": backend, **where(shape, device, dtype)}
        | {
            f"{name}_ms": 1000 * statistics.median(seconds[backend])
            for name, seconds in zip(("forward", "backward"), times, strict=True)
        }
        for backend in calls
    ]


def where(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a measured row holds for."""
    return {"device": device_name(device), "dtype": str(dtype).removeprefix("torch."), "shape": shape.facts()}


def fits(row: dict[str, Any], shape: Shape, device: torch.device, dtype: torch.dtype) -> bool:
    return all(row.get(name) == value for name, value in where(shape, device, dtype).items())


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows that `launch/bench.py kernels` wrote. Raises FileNotFoundError, ValueError with what is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"kernels.table: {path} is no file; launch/bench.py kernels --out {path} writes one")
    try:
        rows = json.loads(path.read_text())["rows"]
        for row in rows:
            if row["op"] not in OPS or row["backend"] not in BACKENDS[row["op"]]:
                raise ValueError(f"{row['op']} by {row['backend']} is not known")
            float(row["forward_ms"]), float(row["backward_ms"]), row["device"], row["dtype"], row["shape"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no table of launch/bench.py kernels ({error}); write it anew") from None
    return list(rows)

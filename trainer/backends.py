"""Which implementation of each operation a run uses: as configured, as a table says, or measured at start."""

import json
import statistics
from collections.abc import Callable
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
    """The operations of a run in `output`, where what was measured for them is kept."""
    return chosen(config, world, precision, output).ops()


def chosen(config: BaseConfig, world: "World", precision: str, output: Path | None = None) -> Choice:
    """The same on all ranks; rank 0 chooses and says what."""
    found: list[Choice | None] = [None]
    if world.rank == 0:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        held = output / TABLE if output else None
        shape = Shape.of(config.model, config.training.micro_batch)
        table = read_table(Path(config.kernels.table)) if config.kernels.table else None
        if held and held.exists():
            table = read_table(held)
        choice, measured = decide(config.kernels, shape, world.device, dtype, table, config.training.compile)
        if measured and held:
            write_json(held, {"rows": [*(table or []), *measured]})
        print("kernels: " + "; ".join(choice.lines()), flush=True)
        found = [choice]
    torch.distributed.broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


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
    """Rows of a table, one for each backend that runs here."""
    implementations = {backend: as_run(op, backend, compiled) for backend in backends}
    found = timings(op, case, implementations, device, rounds, inner)
    return [row(op, backend, shape, device, dtype, *seconds) for backend, seconds in found.items()]


def as_run(op: str, backend: str, compiled: bool) -> Callable[..., Any]:
    """An implementation as a run with compiled blocks has it; kernels of their own are not made faster by that."""
    implementation = BACKENDS[op][backend]
    return torch.compile(implementation) if compiled and backend in ("reference", "sdpa") else implementation


def timings(
    op: str, case: Case, implementations: dict[str, Callable[..., Any]], device: torch.device, rounds: int, inner: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds forward and backward of each implementation, which take turns. One that fails is named and left out."""
    calls = {}
    for name, implementation in implementations.items():
        try:
            pair = [case.timed(implementation, backward) for backward in (False, True)]
            for call in pair:
                call()
            calls[name] = pair
        except Exception as error:  # of whatever library
            print(f"kernels: {op}: {name} does not run here: {str(error).splitlines()[0]}", flush=True)
    forward, backward = (
        interleaved({name: pair[way] for name, pair in calls.items()}, rounds, inner, WARM_UPS, device)
        for way in (0, 1)
    )
    return {name: (forward[name], backward[name]) for name in calls}


def row(
    op: str,
    name: str,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    forward: list[float],
    backward: list[float],
) -> dict[str, Any]:
    """Medians in milliseconds, and what they hold for."""
    ms = {"forward_ms": 1000 * statistics.median(forward), "backward_ms": 1000 * statistics.median(backward)}
    return {"op": op, "backend": name, **where(shape, device, dtype), **ms}


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

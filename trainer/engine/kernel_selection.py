"""Which implementation of each operation a run uses: as configured, as a table says, or measured at start."""

import json
import math
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config

from ...kernels.ops import BACKENDS, OPS, KernelsConfig, Ops, available, missing, resolve
from ...models.config import ModelConfig
from ..core.config import BaseConfig
from ..core.files import write_json
from ..core.hardware import fastest_precision
from .kernel_cases import FRESH, Case, Shape, cases
from .timing import captured, interleaved, replayed

if TYPE_CHECKING:
    from .zero import World  # imports DeepSpeed, which making sound does without

TABLE = "kernels.json"  # in a run's folder: what was measured when it began, so that it goes on with the same
ROUNDS, WARM_UPS = 5, 2
OFF = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest value: a wrong result


@dataclass(frozen=True)
class Choice:
    """A backend for each operation, and why it was taken."""

    names: dict[str, str]
    reasons: dict[str, str]

    def ops(self) -> Ops:
        return resolve(self.names)

    def lines(self) -> list[str]:
        return [f"{op}: {self.names[op]} ({self.reasons[op]})" for op in OPS]


def check(wanted: KernelsConfig, precision: str, model: ModelConfig) -> None:
    """Refuses what cannot run here, before any process group is made. Raises ValueError, FileNotFoundError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    width = model.backbone.width // model.backbone.heads
    for op in OPS:
        name, head = getattr(wanted, op), width if op == "joint_attention" else 0
        if name != "auto" and (why := missing(name, device, dtype, head)):
            raise ValueError(f"kernels.{op}: {name!r} {why}")
    if wanted.benchmark_file:
        read_table(Path(wanted.benchmark_file))


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
        table = read_table(Path(config.kernels.benchmark_file)) if config.kernels.benchmark_file else None
        if held and held.exists():
            table = read_table(held)
        choice, measured = decide(config.kernels, shape, world.device, dtype, table, config.training.compile)
        if measured and held:
            write_json(held, {"rows": [*(table or []), *measured]})
        print("kernels: " + "; ".join(choice.lines()), flush=True)
        if precision == "bf16" and fastest_precision() == "fp32":
            print("this CPU has no instructions for bf16: with every `precision` fp32 it is much faster", flush=True)
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

    "auto" takes the fastest forward and backward of the table's rows for this device, dtype and model, those at the
    nearest batch; where there are none it says so and measures. With one candidate, as on a CPU, there is nothing to
    measure: there the reference is the faster of the two that run (docs/performance.md).
    """
    names: dict[str, str] = {}
    reasons: dict[str, str] = {}
    measured: list[dict[str, Any]] = []
    ready: dict[str, Case] | None = None
    given = where(shape, device, dtype)
    for op in OPS:
        name = getattr(wanted, op)
        candidates = available(op, device, dtype, shape.head_width) if device.type == "cuda" else ["reference"]
        if name != "auto":
            names[op], reasons[op] = name, "as configured"
            continue
        if len(candidates) == 1:
            names[op], reasons[op] = candidates[0], f"auto on {device.type}"
            continue
        rows = nearest([row for row in table or [] if row["op"] == op and row["backend"] in candidates], given)
        source = f"table at batch {rows[0]['shape']['batch']}" if rows else "measured"
        if not rows:
            if table:
                print(f"kernels: {op}: the table has no row for {given}: measured here", flush=True)
            ready = ready or cases(shape, device, dtype)
            rows = measure(op, ready[op], candidates, shape, device, dtype, compiled)
            measured += rows
        if not rows:
            names[op], reasons[op] = "reference", "auto: nothing else runs here"
            continue
        ms = {row["backend"]: row["forward_ms"] + row["backward_ms"] for row in rows}
        names[op] = min(ms, key=ms.__getitem__)
        listed = ", ".join(f"{b} {ms[b]:.3g} ms" for b in sorted(ms, key=ms.__getitem__))
        reasons[op] = f"auto, {source}: {listed}"
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
    found, _ = timings(op, case, implementations, device, rounds, inner)
    return [row(op, backend, shape, device, dtype, *seconds) for backend, seconds in found.items()]


def as_run(op: str, backend: str, compiled: bool) -> Callable[..., Any]:
    """An implementation as a run with compiled blocks has it: what libraries leave to PyTorch (norm, rotation,
    concatenation, splitting) is compiled around their kernels; each stream's length has code of its own."""
    implementation = BACKENDS[op][backend]
    return torch.compile(implementation, dynamic=False) if compiled and backend != "triton" else implementation


def timings(
    op: str, case: Case, implementations: dict[str, Callable[..., Any]], device: torch.device, rounds: int, inner: int
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, str]]:
    """Seconds forward and backward of each implementation, which take turns; on a GPU by its own clock, as CUDA graphs
    whose inputs are in no cache. And why those were left out that fail, or whose outputs or gradients are not the
    reference's."""
    on_gpu = device.type == "cuda"
    # A compiled backward is called again and again with what its forward kept, which it must not write into. Graphs,
    # streams and events are those of the current GPU.
    with torch._functorch.config.patch(donated_buffer=False), torch.cuda.device(device) if on_gpu else nullcontext():
        calls, failed = _ready(op, case, implementations, device, inner)
        ways = []
        for way in (0, 1):
            turns = {name: pair[way] for name, pair in calls.items()}
            ways.append(
                replayed(turns, rounds, inner, device)
                if on_gpu
                else interleaved(turns, rounds, inner, WARM_UPS, device)
            )
    return {name: (ways[0][name], ways[1][name]) for name in calls}, failed


def _ready(
    op: str, case: Case, implementations: dict[str, Callable[..., Any]], device: torch.device, inner: int
) -> tuple[dict[str, list[Callable[[], None]]], dict[str, str]]:
    """Calls forward and backward of what computes as the reference does, and why the rest does not."""
    calls: dict[str, list[Callable[[], None]]] = {}
    failed: dict[str, str] = {}
    expected = case.results(BACKENDS[op]["reference"])
    for name, implementation in implementations.items():
        try:
            if wrong := _differing(case.results(implementation), expected):
                raise ValueError(wrong)
            calls[name] = [_call(case, implementation, backward, inner, device) for backward in (False, True)]
        except Exception as error:  # of whatever library
            failed[name] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"kernels: {op}: {name} does not run here: {failed[name]}", flush=True)
    return calls, failed


def _call(
    case: Case, implementation: Callable[..., Any], backward: bool, inner: int, device: torch.device
) -> Callable[[], None]:
    if device.type == "cuda":
        return captured(lambda: case.timed(implementation, backward, FRESH), inner)
    call = case.timed(implementation, backward)
    call()
    return call


def _differing(results: list[torch.Tensor], expected: list[torch.Tensor]) -> str:
    """What of outputs and gradients is off; nothing where all is well."""
    for place, (a, b) in enumerate(zip(results, expected, strict=True)):
        worst = ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-3)).item()
        if not worst <= OFF[min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)]:
            return f"output or gradient {place} is off by {worst:.2g} of the reference's largest value"
    return ""


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


def nearest(rows: list[dict[str, Any]], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Those for this device, dtype and model whose batch is nearest to the one given."""

    def but_batch(facts: dict[str, Any]) -> tuple[Any, ...]:
        return facts["device"], facts["dtype"], {k: v for k, v in facts["shape"].items() if k != "batch"}

    fitting = [row for row in rows if but_batch(row) == but_batch(given)]
    ratio = {n: abs(math.log(n / given["shape"]["batch"])) for n in {row["shape"]["batch"] for row in fitting}}
    return [row for row in fitting if row["shape"]["batch"] == min(ratio, key=ratio.__getitem__)]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows that `launch/bench.py kernels` wrote. Raises FileNotFoundError, ValueError with what is wrong."""
    if not path.is_file():
        raise FileNotFoundError(
            f"kernels.benchmark_file: {path} is no file; launch/bench.py kernels --out {path} writes one"
        )
    try:
        rows = json.loads(path.read_text())["rows"]
        for row in rows:
            if row["op"] not in OPS or row["backend"] not in BACKENDS[row["op"]]:
                raise ValueError(f"{row['op']} by {row['backend']} is not known")
            float(row["forward_ms"]), float(row["backward_ms"]), row["device"], row["dtype"], row["shape"]["batch"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no table of launch/bench.py kernels ({error}); write it anew") from None
    return list(rows)

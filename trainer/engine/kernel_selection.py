"""The implementation of each operation that a run uses: as configured, as a table says, or measured at start."""

import json
import math
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config

from ...kernels.ops import BACKENDS, OPS, KernelsConfig, Ops, available, missing, resolve
from ...models import strict
from ...models.config import AnyModelConfig, ReleasedModelConfig
from ..core.config import BaseConfig
from ..core.files import write_json
from ..core.hardware import fastest_precision
from .fp8_casts import with_casts
from .kernel_cases import UNCACHED_BYTES, BlockShape, KernelCase, kernel_cases
from .timing import capture_graph, time_graphs, time_interleaved

if TYPE_CHECKING:
    from .process_group import World  # imports DeepSpeed, which generating does not need

TABLE_FILE = "kernels.json"  # in a run's folder: measured at its start, so that a resumed run selects the same
ROUNDS, WARM_UPS = 5, 2
TOLERANCES = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative to the largest value
FP8_TOLERANCE = 0.3  # next to a quarter, the step between two gradients of 8 bits


@dataclass(frozen=True)
class KernelSelection:
    """A backend for each operation, and why it was selected."""

    names: dict[str, str]
    reasons: dict[str, str]

    def ops(self) -> Ops:
        return resolve(self.names)

    def lines(self) -> list[str]:
        return [f"{op}: {self.names[op]} ({self.reasons[op]})" for op in OPS]


RELEASED = KernelSelection(
    dict.fromkeys(OPS, "reference"), dict.fromkeys(OPS, "the released network has other blocks than ours")
)


def check_kernels(kernels: KernelsConfig, precision: str, model: AnyModelConfig) -> None:
    """Refuse what cannot run here, before any process group is made. Raises ValueError, FileNotFoundError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if isinstance(model, ReleasedModelConfig):
        if named := [op for op in OPS if getattr(kernels, op) not in ("auto", "reference")]:
            raise ValueError(
                f"kernels.{named[0]}: {getattr(kernels, named[0])!r}; the released network has other blocks than ours, "
                f"set it to auto"
            )
        return
    width = model.backbone.width // model.backbone.heads
    for op in OPS:
        name, head = getattr(kernels, op), width if op == "joint_attention" else 0
        if name != "auto" and (why := missing(name, device, dtype, head)):
            raise ValueError(f"kernels.{op}: {name!r} {why}")
    if kernels.benchmark_file:
        read_table(Path(kernels.benchmark_file))


def select_for_run(config: BaseConfig, world: "World", precision: str, output: Path | None = None) -> KernelSelection:
    """The same selection on all ranks; rank 0 makes and prints it. The run's folder `output` keeps what is measured."""
    if isinstance(config.model, ReleasedModelConfig):
        return RELEASED
    shared: list[KernelSelection | None] = [None]
    if world.rank == 0:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        file = output / TABLE_FILE if output else None
        shape = BlockShape.from_model(config.model, config.training.micro_batch)
        table = read_table(Path(config.kernels.benchmark_file)) if config.kernels.benchmark_file else None
        if file and file.exists():
            table = read_table(file)
        compiled = config.training.compile
        fp8 = config.training.fp8
        selection, measured = select_for_shape(config.kernels, shape, world.device, dtype, table, compiled, fp8)
        if measured and file:
            write_json(file, {"rows": [*(table or []), *measured]})
        print("kernels: " + "; ".join(selection.lines()), flush=True)
        if precision == "bf16" and fastest_precision() == "fp32":
            print("this CPU has no instructions for bf16: with every `precision` fp32 it is much faster", flush=True)
        shared = [selection]
    torch.distributed.broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0]


def select_for_shape(
    kernels: KernelsConfig,
    shape: BlockShape,
    device: torch.device,
    dtype: torch.dtype,
    table: list[dict[str, Any]] | None = None,
    compiled: bool = False,
    fp8: bool = False,
) -> tuple[KernelSelection, list[dict[str, Any]]]:
    """A selection, and the rows that were measured for it. With `fp8` operations count together with the casts around
    them.

    "auto" takes the backend with the fastest forward and backward among the table's rows for this device, dtype and
    model at the nearest batch. If there are none it says so and measures. With one candidate, as on a CPU, nothing is
    measured: there the reference is the faster of the two that run (docs/performance.md).
    """
    names: dict[str, str] = {}
    reasons: dict[str, str] = {}
    measured: list[dict[str, Any]] = []
    cases: dict[str, KernelCase] | None = None
    conditions = row_conditions(shape, device, dtype, fp8)
    for op in OPS:
        name = getattr(kernels, op)
        candidates = available(op, device, dtype, shape.head_width) if device.type == "cuda" else ["reference"]
        if name != "auto":
            names[op], reasons[op] = name, "as configured"
            continue
        if len(candidates) == 1:
            names[op], reasons[op] = candidates[0], f"auto on {device.type}"
            continue
        rows = [row for row in table or [] if row["op"] == op and row["backend"] in candidates]
        rows = nearest_rows(rows, conditions)
        source = f"table at batch {rows[0]['shape']['batch']}" if rows else "measured"
        if not rows:
            if table:
                print(f"kernels: {op}: the table has no row for {conditions}: measured here", flush=True)
            cases = cases or kernel_cases(shape, device, dtype)
            rows = measure_backends(op, cases[op], candidates, shape, device, dtype, compiled, fp8=fp8)
            measured += rows
        if not rows:
            names[op], reasons[op] = "reference", "auto: nothing else runs here"
            continue
        ms = {row["backend"]: row["forward_ms"] + row["backward_ms"] for row in rows}
        names[op] = min(ms, key=ms.__getitem__)
        listed = ", ".join(f"{b} {ms[b]:.3g} ms" for b in sorted(ms, key=ms.__getitem__))
        reasons[op] = f"auto, {source}: {listed}"
    return KernelSelection(names, reasons), measured


def measure_backends(
    op: str,
    case: KernelCase,
    backends: list[str],
    shape: BlockShape,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    rounds: int = ROUNDS,
    inner: int = 10,
    fp8: bool = False,
) -> list[dict[str, Any]]:
    """Rows of a table, one per backend that runs here."""
    implementations = {backend: as_in_run(op, backend, compiled, fp8) for backend in backends}
    tolerance = FP8_TOLERANCE if fp8 else 0.0
    timed, _ = time_implementations(op, case, implementations, device, rounds, inner, tolerance)
    return [table_row(op, backend, shape, device, dtype, *seconds, fp8=fp8) for backend, seconds in timed.items()]


def as_in_run(op: str, backend: str, compiled: bool, fp8: bool = False) -> Callable[..., Any]:
    """An implementation as a run with compiled blocks has it. What libraries leave to PyTorch (norm, rotation,
    concatenation, splitting) is compiled around their kernels, with separate code for each stream's length; so are the
    casts of `fp8`, which a compiler can make part of its own kernels, but not of ours."""
    implementation = BACKENDS[op][backend]
    if fp8:
        implementation = with_casts(op, implementation)
    return torch.compile(implementation, dynamic=False) if compiled and (fp8 or backend != "triton") else implementation


def time_implementations(
    op: str,
    case: KernelCase,
    implementations: dict[str, Callable[..., Any]],
    device: torch.device,
    rounds: int,
    inner: int,
    tolerance: float = 0.0,
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, str]]:
    """Seconds forward and backward of each implementation, and why others were left out: they fail, or their outputs or
    gradients differ from the reference's by more than `tolerance` of the largest value (0: what their dtype allows).
    Implementations take turns, on a GPU as CUDA graphs timed by its own clock, with inputs that are in no cache."""
    on_gpu = device.type == "cuda"
    # A compiled backward is called repeatedly on the tensors that its forward kept, so it must not write into them.
    # Graphs, streams and events are those of the current GPU.
    with torch._functorch.config.patch(donated_buffer=False), torch.cuda.device(device) if on_gpu else nullcontext():
        calls, failed = _timed_calls(op, case, implementations, device, inner, tolerance)
        both = []
        for way in (0, 1):
            variants = {name: pair[way] for name, pair in calls.items()}
            if on_gpu:
                both.append(time_graphs(variants, rounds, inner, device))
            else:
                both.append(time_interleaved(variants, rounds, inner, WARM_UPS, device))
    return {name: (both[0][name], both[1][name]) for name in calls}, failed


def _timed_calls(
    op: str,
    case: KernelCase,
    implementations: dict[str, Callable[..., Any]],
    device: torch.device,
    inner: int,
    tolerance: float,
) -> tuple[dict[str, list[Callable[[], None]]], dict[str, str]]:
    """Calls forward and backward of implementations that agree with the reference, and why the others are left out."""
    calls: dict[str, list[Callable[[], None]]] = {}
    failed: dict[str, str] = {}
    expected = case.results(BACKENDS[op]["reference"])
    for name, implementation in implementations.items():
        try:
            if wrong := _difference(case.results(implementation), expected, tolerance):
                raise ValueError(wrong)
            calls[name] = [_call(case, implementation, backward, inner, device) for backward in (False, True)]
        except Exception as error:  # of any library
            failed[name] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"kernels: {op}: {name} does not run here: {failed[name]}", flush=True)
    return calls, failed


def _call(
    case: KernelCase, implementation: Callable[..., Any], backward: bool, inner: int, device: torch.device
) -> Callable[[], None]:
    if device.type == "cuda":
        return capture_graph(lambda: case.timed_call(implementation, backward, UNCACHED_BYTES), inner)
    call = case.timed_call(implementation, backward)
    call()
    return call


def _difference(results: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> str:
    """The output or gradient that differs from the reference; "" if none does."""
    for place, (a, b) in enumerate(zip(results, expected, strict=True)):
        worst = ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-3)).item()
        if not worst <= (tolerance or TOLERANCES[min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)]):
            return f"output or gradient {place} is off by {worst:.2g} of the reference's largest value"
    return ""


def table_row(
    op: str,
    name: str,
    shape: BlockShape,
    device: torch.device,
    dtype: torch.dtype,
    forward: list[float],
    backward: list[float],
    fp8: bool = False,
) -> dict[str, Any]:
    """Medians in milliseconds, and the conditions they hold for."""
    ms = {"forward_ms": 1000 * statistics.median(forward), "backward_ms": 1000 * statistics.median(backward)}
    return {"op": op, "backend": name, **row_conditions(shape, device, dtype, fp8), **ms}


def row_conditions(shape: BlockShape, device: torch.device, dtype: torch.dtype, fp8: bool = False) -> dict[str, Any]:
    """The device, dtype and shape that a measured row holds for, and whether casts to 8 bits are part of it."""
    conditions = {"device": device_name(device), "dtype": str(dtype).removeprefix("torch."), "shape": asdict(shape)}
    return conditions | ({"fp8": True} if fp8 else {})


def nearest_rows(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows for the same device, dtype and model whose batch is nearest."""

    def without_batch(row: dict[str, Any]) -> tuple[Any, ...]:
        return (
            row["device"],
            row["dtype"],
            row.get("fp8", False),
            {k: v for k, v in row["shape"].items() if k != "batch"},
        )

    fitting = [row for row in rows if without_batch(row) == without_batch(conditions)]
    ratio = {n: abs(math.log(n / conditions["shape"]["batch"])) for n in {row["shape"]["batch"] for row in fitting}}
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
        rows = strict.parse_json(path.read_text())["rows"]
        for row in rows:
            if row["op"] not in OPS or row["backend"] not in BACKENDS[row["op"]]:
                raise ValueError(f"{row['op']} by {row['backend']} is not known")
            float(row["forward_ms"]), float(row["backward_ms"]), row["device"], row["dtype"], row["shape"]["batch"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no table of launch/bench.py kernels ({error}); write it again") from None
    return list(rows)

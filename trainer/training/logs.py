"""Progress bar, TensorBoard and metrics.jsonl of a run, on rank 0 only."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor
from tqdm import tqdm

from ..checkpoint.rollback import ROLLED_BACK, unused_name
from ..core.files import write_text
from ..pages.embedded_media import spectrogram
from .trackers import Tracker, Trackers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSSES = ("loss", "warm_start", "dm", "regression", "adversarial", "fake", "discriminator")  # of both


class Lines:
    """Writes each state of a progress bar on its own line, because a file has no cursor."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, title: str, unit: str, start: int = 0, active: bool = True) -> tqdm:
    """A progress bar: on a terminal a bar, in a file a line per minute."""
    looks = {"dynamic_ncols": True, "mininterval": 0.5} if sys.stderr.isatty() else {"file": Lines(), "mininterval": 60}
    return tqdm(total=total, initial=start, desc=title, unit=unit, disable=not active, **looks)


def _event_file(folder: Path, start: int) -> "SummaryWriter":
    """TensorBoard's next file; what earlier ones say of later steps does not count."""
    from torch.utils.tensorboard import SummaryWriter  # takes half a second, on rank 0 only

    return SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)


class Logs:
    """Progress bar, event files and metrics.jsonl of a run. Silent on all ranks but 0."""

    def __init__(
        self,
        folder: Path,
        active: bool,
        start: int,
        steps: int,
        title: str,
        keep: bool = False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """With `keep`, the lines of steps after `start` are moved to `rolled_back/`; without, they are dropped."""
        self.active = active
        self.started = time.perf_counter()
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        damage = _forget_after(folder / "metrics.jsonl", start, keep)
        self.file = (folder / "metrics.jsonl").open("a")
        self.board = _event_file(folder, start)
        self.bar = progress(steps, title, "step", start)
        self.trackers = Trackers(trackers, self.say)
        if damage:
            self.say(damage)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self.trackers.close()
            self.bar.close()
            self.board.close()
            self.file.close()

    def go_back(self, step: int, from_step: int, skipped_batches: int) -> None:
        """The run continues at an earlier step. The metrics of the steps since then are moved to `rolled_back/`, and
        the next line says where the run came from."""
        if not self.active:
            return
        self.file.close()
        path = self.folder / "metrics.jsonl"
        _forget_after(path, step, keep=True)
        self.file = path.open("a")
        self.board.close()
        self.board = _event_file(self.folder, step)
        self.bar.n = step
        self.metrics(step, {"rolled_back_from": float(from_step), "skipped_batches": float(skipped_batches)}, ())

    def advance(self, steps: int = 1) -> None:
        if self.active:
            self.bar.update(steps)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.active:
            self.bar.write(text)

    def metrics(self, step: int, values: dict[str, float], in_bar: tuple[str, ...]) -> None:
        """Writes one line of metrics.jsonl and one point of every curve. Values in `in_bar` also go into the bar."""
        if not self.active:
            return
        line: dict[str, float | None] = {"step": step, "seconds": round(time.perf_counter() - self.started, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.trackers.metrics(step, values)
        self.bar.set_postfix({n.split("/")[-1]: f"{values[n]:.4g}" for n in in_bar if n in values}, refresh=False)

    def sounds(self, step: int, names: list[str], waves: Tensor, sample_rate: int) -> None:
        """Writes waves (B, channels, samples) in [-1, 1], each with its spectrogram."""
        if not self.active:
            return
        for name, wave in zip(names, waves, strict=True):
            self.board.add_audio(name, wave.mean(0, keepdim=True), step, sample_rate=sample_rate)
            self.board.add_image(name, spectrogram(wave, sample_rate), step, dataformats="HW")


def read_losses(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The losses of a run by name, (step, value) each; empty without metrics."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in _lines(folder / "metrics.jsonl"):
        for name in LOSSES:
            if line.get(name) is not None:
                curves.setdefault(name, []).append((float(line["step"]), float(line[name])))
    return curves


def last_step(folder: Path) -> int:
    """The last step in a run's metrics, or 0."""
    return max((line["step"] for line in _lines(folder / "metrics.jsonl")), default=0)


def _forget_after(path: Path, step: int, keep: bool = False) -> str:
    """Drops the lines of steps that a resumed run will write again, or moves them to `rolled_back/`. A damaged file is
    kept under another name; returns a sentence about it, or ""."""
    if not path.exists():
        return ""
    lines, damaged = _read(path)
    warning = ""
    if damaged:
        former = path.with_name(f"{path.stem}.damaged{path.suffix}")
        os.replace(path, former)
        count = f"{damaged} of its {damaged + len(lines)} lines {'is' if damaged == 1 else 'are'}"
        warning = f"{path} is damaged: {count} left out; the file as it was is {former.name}"
    later = [line for line in lines if line["step"] > step]
    if keep and later:
        file = path.parent / ROLLED_BACK / f"{path.stem}_{later[0]['step']}_to_{later[-1]['step']}{path.suffix}"
        write_text(unused_name(file), _text(later))
    write_text(path, _text(line for line in lines if line["step"] <= step))
    return warning


def _text(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _lines(path: Path) -> list[dict[str, Any]]:
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that can be read, and how many cannot. Half a line at the end, which a killed process may leave, is not
    counted. The file is for people: whatever is wrong with it must not keep a run from training."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    lines, damaged = list[dict[str, Any]](), 0
    for line in text.splitlines(keepends=True):
        try:
            row = json.loads(line)
            valid = isinstance(row, dict) and type(row.get("step")) is int and all(map(_is_value, row.values()))
        except (ValueError, RecursionError):
            valid = False
        if valid:
            lines.append(row)
        elif line.endswith("\n"):
            damaged += 1
    return lines, damaged


def _is_value(value: object) -> bool:
    return value is None or isinstance(value, (int, float))

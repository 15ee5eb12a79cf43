"""Services that follow a run beside TensorBoard: Weights & Biases and MLflow, also without a network."""

import importlib
import importlib.util
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ...models import strict
from ..core.config import BaseConfig, TrackerConfig
from ..core.credentials import redacted
from ..core.files import write_json

PATIENCE = 30.0  # seconds that the end of a run waits for services
STATE = "trackers.json"  # in the run's folder: under which id each service knows it


class Tracker(Protocol):
    """A service that a run reports to."""

    name: str

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_trackers(config: BaseConfig) -> None:
    """Raises ValueError where a tracker's package is not installed."""
    for tracker in config.logging.trackers:
        if importlib.util.find_spec(tracker.kind) is None:
            raise ValueError(
                f"logging.trackers: {tracker.kind} is not installed; pip install 'audiox-trainer[{tracker.kind}]', or "
                f"leave it out"
            )


def open_trackers(config: BaseConfig, run: Path) -> list[Tracker]:
    """The trackers of a run, which continue where it was resumed. Raises ValueError where a service does not answer."""
    opened: list[Tracker] = []
    known: dict[str, str] = json.loads((run / STATE).read_text()) if (run / STATE).exists() else {}
    for tracker in config.logging.trackers:
        make: Callable[..., WandbTracker | MlflowTracker] = WandbTracker if tracker.kind == "wandb" else MlflowTracker
        try:
            one = make(importlib.import_module(tracker.kind), tracker, run, known.get(tracker.kind), config)
        except Exception as error:  # every service has its own kinds
            raise ValueError(f"logging.trackers: {tracker.kind}: {error}; set offline, or leave it out") from error
        opened.append(one)
        known[tracker.kind] = one.id
    if opened:
        write_json(run / STATE, known)
    return opened


class Trackers:
    """Reports to all of them, from a thread: no service may end a training or make it wait. One that fails is named,
    and left out."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        self.trackers, self.say = list(trackers), say
        self._queue: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._report, name="trackers", daemon=True)
        if self.trackers:
            self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self.trackers:
            self._queue.put((step, dict(values)))

    def close(self, patience: float = PATIENCE) -> None:
        """Wait until everything is reported, at most so many seconds."""
        if not self._thread.is_alive():
            return
        self._queue.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            names = " and ".join(tracker.name for tracker in self.trackers)
            self.say(f"{names} did not take everything within {patience:g} s; the last values may be missing there")

    def _report(self) -> None:
        while (item := self._queue.get()) is not None:
            step, values = item
            self._each(lambda tracker: tracker.metrics(step, values))  # noqa: B023
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # every service has its own kinds
                self.trackers.remove(tracker)
                self.say(f"{tracker.name} does not follow this run any more: {redacted(str(error))}")


class WandbTracker:
    """A run of Weights & Biases. Offline it lies in RUN/wandb, and `wandb sync` uploads it."""

    name = "wandb"

    def __init__(
        self, wandb: ModuleType, settings: TrackerConfig, run: Path, known: str | None, config: BaseConfig
    ) -> None:
        self.run: Any = wandb.init(
            project=settings.project,
            name=run.name,
            id=known,
            resume="allow",
            dir=str(run),
            config=strict.to_dict(config),
            mode="offline" if settings.offline else "online",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.id = str(self.run.id)
        # Steps of a run that went back come again, which W&B's own counter does not allow.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self) -> None:
        self.run.finish()


class MlflowTracker:
    """A run of MLflow, at `address`, or where MLFLOW_TRACKING_URI says. Offline it lies in RUN/mlflow, and
    `mlflow server --backend-store-uri sqlite:///RUN/mlflow/mlflow.db` shows it."""

    name = "mlflow"

    def __init__(
        self, mlflow: ModuleType, settings: TrackerConfig, run: Path, known: str | None, config: BaseConfig
    ) -> None:
        self.entities = importlib.import_module("mlflow.entities")
        folder = (run / "mlflow").absolute()
        address, artifacts = settings.address or None, None
        if settings.offline:
            folder.mkdir(exist_ok=True)
            address, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        self.client: Any = mlflow.MlflowClient(tracking_uri=address)
        if known is None:
            experiment = self.client.get_experiment_by_name(settings.project)
            number = experiment.experiment_id if experiment else None
            number = number or self.client.create_experiment(settings.project, artifact_location=artifacts)
            known = self.client.create_run(number, run_name=run.name).info.run_id
            self.client.log_dict(known, strict.to_dict(config), "config.json")
        self.client.update_run(known, status="RUNNING")
        self.id = known

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        self.client.log_batch(self.id, [self.entities.Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)

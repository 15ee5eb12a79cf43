"""The stages that ask a model, by name: annotation, and captions from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..manifest.prices import Price
from ..stages.run_stage import run_stage
from ..stages.stage import Stage, StageSummary, StageWorkers
from .annotate import Annotation
from .ask_lines import Asking, Interview
from .rewrite import Rewriting

DECIDING = ("model", "pictures", "longest", "temperature")  # what of an endpoint decides the result


@dataclass(frozen=True)
class AskOptions:
    """How is asked, and what it may cost; the result does not depend on it. Raises ValueError for a limit that
    cannot be."""

    concurrency: int = 8  # requests at the same time, of all workers
    again: bool = False  # repeat questions whose answers were refused in an earlier run
    price: Price = field(default_factory=Price)
    at_most: float | None = None  # money; nothing is asked if the forecast is higher

    def __post_init__(self) -> None:
        self.price.check_limit(self.at_most)


def annotate_manifest(
    manifest: Path, out: Path, annotation: Annotation, workers: StageWorkers, options: AskOptions
) -> StageSummary:
    """Write `out`, a manifest with the missing fields of another one. Raises as `run_stage`."""
    stage = _stage("annotate", annotation, {}, options)
    return run_stage(stage, manifest, out, workers)


def rewrite_manifest(
    manifest: Path, out: Path, rewriting: Rewriting, workers: StageWorkers, options: AskOptions
) -> StageSummary:
    """Write `out`, a manifest with more captions of another one. Raises as `run_stage`."""
    stage = _stage("rewrite", rewriting, {"kinds": list(rewriting.kinds), "captions": rewriting.captions}, options)
    return run_stage(stage, manifest, out, workers)


def _stage(name: str, interview: Interview, settings: dict[str, Any], options: AskOptions) -> Stage:
    settings |= {key: getattr(interview.endpoint, key) for key in DECIDING}
    asking = Asking(interview, options.concurrency, options.again)
    return Stage(name, settings, asking.hear, asking=asking, price=options.price, at_most=options.at_most)

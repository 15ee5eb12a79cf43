"""The stages by name: from a manifest to a smaller or finer one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...models import strict
from .filter import FilterJudge
from .filter_config import LineFilters
from .run_stage import run_stage
from .segment import Segmentation, SegmentJudge
from .stage import Stage, StageSummary, StageWorkers


def segment_manifest(manifest: Path, out: Path, segmentation: Segmentation, workers: StageWorkers) -> StageSummary:
    """Write `out` with one line per segment. Raises as `run_stage`."""
    stage = Stage("segment", asdict(segmentation), SegmentJudge(segmentation))
    return run_stage(stage, manifest, out, workers)


def filter_manifest(
    manifest: Path, out: Path, filters: LineFilters, workers: StageWorkers, duplicates: bool = True, device: str = ""
) -> StageSummary:
    """Write `out` with the lines of a manifest that pass the filters. Without `duplicates`, those that resemble an
    earlier one are left out, too. `device` of the networks: default a GPU of the machine, else the CPU.

    Raises as `run_stage`, and ValueError where a network is missing, with how to get it, or not as it says.
    """
    settings = {"filters": _settings(filters, device), "duplicates": duplicates}
    judge, gpus = FilterJudge(filters, not duplicates, device), bool(filters.scorers) and device != "cpu"
    stage = Stage("filter", settings, judge, filters.limits(), gpus=gpus)
    return run_stage(stage, manifest, out, workers)


def _settings(filters: LineFilters, device: str) -> dict[str, Any]:
    """As JSON; networks by what they are, because their paths may change."""
    settings: dict[str, Any] = strict.to_dict(filters)
    if filters.scorers:
        from .scorer_filters import check_scorers  # takes seconds: torch

        digests = check_scorers(filters, device)
        settings["scorers"] = [scorer | {"scorer": digests[scorer["name"]]} for scorer in settings["scorers"]]
    return settings

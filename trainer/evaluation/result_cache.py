"""What an evaluation has judged so far: one that was stopped goes on after it, with the same figures."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file

from ..core.files import write_json
from .metrics import Scores
from .t2a_benchmark import Outcome, Row

Judged = tuple[Outcome, list[Row]]  # on T2A-bench, and the rows of the tasks


class Parts:
    """A folder, with two files for each model that was judged; it is removed when the report is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: dict[str, Any], judge: Callable[[], Judged]) -> Judged:
        """What was kept under `key`, which holds all that the result depends on; else it is judged, and kept."""
        name = xxhash.xxh3_64_hexdigest(json.dumps(key, sort_keys=True))
        rows, tensors = self.folder / f"{name}.json", self.folder / f"{name}.safetensors"
        if rows.exists():  # written last
            kept, data = json.loads(rows.read_text()), load_file(tensors)
            scores = Scores(**{field.name: data[field.name].numpy() for field in fields(Scores)})
            return Outcome(kept["row"], scores, data["waves"]), kept["tasks"]
        outcome, tasks = judge()
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {field.name: torch.from_numpy(getattr(outcome.scores, field.name)) for field in fields(Scores)}
        save_file(data | {"waves": outcome.waves.contiguous()}, tensors)
        write_json(rows, {"key": key, "row": outcome.row, "tasks": tasks})
        return outcome, tasks

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

"""The models that an interrupted evaluation has judged: the next one reads them and reports the same figures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file

from ..core.files import write_json
from .t2a_benchmark import Row, T2AResult
from .t2a_prompts import Scores

Judged = tuple[T2AResult, list[Row]]  # on T2A-bench, and the rows of the tasks


class ResultCache:
    """A folder with two files for each model; it is removed when the report is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: dict[str, Any], judge: Callable[[], Judged]) -> Judged:
        """The result under `key`, which has everything that the result depends on; computed and kept if missing."""
        name = xxhash.xxh3_64_hexdigest(json.dumps(key, sort_keys=True))
        rows, tensors = self.folder / f"{name}.json", self.folder / f"{name}.safetensors"
        if rows.exists():  # written last
            cached, data = json.loads(rows.read_text()), load_file(tensors)
            waves = data.pop("waves")
            return T2AResult(cached["row"], Scores(**{k: v.numpy() for k, v in data.items()}), waves), cached["tasks"]
        result, tasks = judge()
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {name: torch.from_numpy(values) for name, values in vars(result.scores).items()}
        save_file(data | {"waves": result.waves.contiguous()}, tensors)
        write_json(rows, {"key": key, "row": result.row, "tasks": tasks})
        return result, tasks

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

"""Features of sounds by the content of their files: what was scored once is never scored again.

FOLDER/features/<digest of the scorer>/<digest of the contents>.safetensors   up to a block of sounds
"""

from collections.abc import Iterable, Mapping, Sequence

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.storage import FolderStore
from .scorer import Features


class FeatureCache:
    """The features of one scorer. Several processes may write to a folder: files of the same name have the same
    content."""

    def __init__(self, store: FolderStore, digest: str) -> None:
        self._store, self._prefix = store, f"features/{digest}/"
        self._files: set[str] = set()
        self._places: dict[str, dict[str, str]] = {}  # content -> feature -> file
        self.refresh()

    def refresh(self) -> None:
        """Learn what other processes have written. A damaged file is passed over, and made again."""
        for name in sorted(self._store.names(self._prefix) - self._files):
            self._files.add(name)
            try:
                with safe_open(self._store.path / name, "pt") as file:
                    keys = [key.split("/") for key in file.keys()]
            except (SafetensorError, OSError):
                continue
            self._enter(name, keys)

    def __contains__(self, content: str) -> bool:
        return content in self._places

    def add(self, rows: Mapping[str, Features]) -> None:
        """Write the features of some contents."""
        if not rows:
            return
        name = f"{self._prefix}{xxhash.xxh3_128(' '.join(sorted(rows))).hexdigest()}.safetensors"
        tensors = {
            f"{content}/{feature}": x.contiguous() for content, row in rows.items() for feature, x in row.items()
        }
        self._store.write(name, save(tensors))
        self._files.add(name)
        self._enter(name, [key.split("/") for key in tensors])

    def load(self, contents: Iterable[str]) -> dict[str, Features]:
        """The features of contents that are here."""
        found: dict[str, Features] = {}
        by_file: dict[str, list[tuple[str, str]]] = {}
        for content in contents:
            for feature, name in self._places[content].items():
                by_file.setdefault(name, []).append((content, feature))
        for name, keys in by_file.items():
            with safe_open(self._store.path / name, "pt") as file:
                for content, feature in keys:
                    tensor: Tensor = file.get_tensor(f"{content}/{feature}")
                    found.setdefault(content, {})[feature] = tensor
        return found

    def _enter(self, name: str, keys: Iterable[Sequence[str]]) -> None:
        for content, feature in keys:
            self._places.setdefault(content, {})[feature] = name

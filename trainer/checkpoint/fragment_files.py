"""Reading parameters from the files of a checkpoint, in which the ranks that saved it have left their fragments."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...models import strict
from ..engine.fragment import Fragment

CONSTANT = "constant"  # of a tensor's key in a file
Wanted = list[tuple[Fragment, dict[str, Tensor]]]  # elements of a parameter, and what of each kind goes where


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete or of another model; the message names it."""


class FragmentFiles:
    """The files of a role. Each is opened only if it may hold what is wanted."""

    def __init__(self, folder: Path, role: str, manifest: dict[str, Any]) -> None:
        self.folder, self.role = folder / role, role
        self.names = role_files(manifest, role)
        self.sharded: bool = manifest["roles"][role]["sharded"]

    def copy(self, wanted: Wanted, rank: int = 0, ranks: int = 1) -> None:
        """Copies elements to where they are wanted, on one of `ranks` ranks. Ranks hold consecutive parts, so the files
        at the same place in the order come first: with as many ranks as have saved that is the rank's own, and no other
        is opened.

        Raises CheckpointError if elements are missing.
        """
        place = (rank + 0.5) / ranks * len(self.names) - 0.5
        order = sorted(range(len(self.names)), key=lambda number: abs(number - place)) if self.sharded else [0]
        missing = [(fragment.length, fragment, into) for fragment, into in wanted if fragment.length]
        for number in order:
            if not missing:
                return
            missing = self._copy_from(number, missing)
        if missing:
            count, fragment, _ = missing[0]
            raise CheckpointError(
                f"{self.folder}: {count} of {fragment.length} elements of {fragment.name} are missing"
            )

    def _copy_from(
        self, number: int, missing: list[tuple[int, Fragment, dict[str, Tensor]]]
    ) -> list[tuple[int, Fragment, dict[str, Tensor]]]:
        """Copies what one file holds. Returns what is missing then."""
        left = []
        with safe_open(self.folder / self.names[number], "pt") as file:
            starts, keys = strict.parse_json(file.metadata()["starts"]), set(file.keys())
            for count, fragment, into in missing:
                copied = 0
                for kind, target in into.items() if fragment.name in starts else ():
                    key = f"{kind}/{fragment.name}"
                    if key not in keys:
                        raise CheckpointError(f"{self.folder} holds no {kind} of {fragment.name}")
                    copied = _copy_overlap(file.get_slice(key), starts[fragment.name], fragment, target)
                if copied < count:
                    left.append((count - copied, fragment, into))
        return left

    def constants(self, rank: int = 0) -> dict[str, Tensor]:
        """The model's tensors that are no parameters, by name. Every rank has saved them."""
        with safe_open(self.folder / self.names[min(rank, len(self.names) - 1)], "pt") as file:
            keys = [key for key in file.keys() if key.startswith(f"{CONSTANT}/")]
            return {key.removeprefix(f"{CONSTANT}/"): file.get_tensor(key) for key in keys}

    def restore_random(self, rank: int) -> None:
        with safe_open(self.folder / self.names[rank], "pt") as file:
            torch.set_rng_state(file.get_tensor("random/cpu"))
            if torch.cuda.is_available() and "random/cuda" in file.keys():
                torch.cuda.set_rng_state(file.get_tensor("random/cuda"))


def role_files(manifest: dict[str, Any], role: str) -> list[str]:
    """The names of a role's files in its folder, by rank."""
    return sorted(name.removeprefix(f"{role}/") for name in manifest["files"] if name.startswith(f"{role}/"))


def _copy_overlap(piece: Any, start: int, wanted: Fragment, into: Tensor) -> int:
    """Copies the elements that a file's slice, which begins at element `start`, and the wanted fragment have in common.
    Returns how many."""
    low = max(start, wanted.start)
    high = min(start + piece.get_shape()[0], wanted.start + wanted.length)
    if low < high:
        into[low - wanted.start : high - wanted.start].copy_(piece[low - start : high - start])
    return max(0, high - low)

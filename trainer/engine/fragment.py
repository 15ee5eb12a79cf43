"""The part of a parameter in a rank's shard, which checkpoints consist of. Does not know DeepSpeed."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of a flattened parameter, at [offset, offset + length) of shard `group`."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    group: int
    offset: int

    def view(self, shards: list[Tensor]) -> Tensor:
        return shards[self.group].view(-1).narrow(0, self.offset, self.length)

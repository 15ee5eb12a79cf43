"""Addresses that give no answer: a few of them are at fault, many in a row are an outage, which may cost no line."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Block = TypeVar("Block")


@dataclass
class UnansweredRow:
    """Addresses in a row that gave no answer: at `most` of them the network or the storage is at fault, not they."""

    most: int  # 0: any number
    count: int = 0

    def add(self, answer: str) -> None:
        """Raises ConnectionError."""
        self.count = self.count + 1 if answer else 0
        if 0 < self.most <= self.count:
            raise ConnectionError(
                f"{self.count} addresses in a row gave no answer, the last one: {answer} (--unreachable 0 leaves out "
                f"any number of them)"
            )


class AnsweredBlocks(Generic[Block]):
    """Records blocks. Not while addresses give their maker no answer: the lines may not be at fault."""

    def __init__(self, most: int, write: Callable[[Block], None]) -> None:
        self._most, self._write = most, write
        self._rows: dict[str, UnansweredRow] = defaultdict(lambda: UnansweredRow(most))
        self._held: dict[str, list[Block]] = defaultdict(list)

    def add(self, block: Block, maker: str, answers: Iterable[str]) -> None:
        """`answers` of its addresses, in order: empty, or why one gave none. Raises ConnectionError if too many of a
        maker's addresses in a row gave no answer."""
        answers = list(answers)
        if not answers or not self._most:  # it asked nobody, or may ask in vain for ever
            self._write(block)
            return
        row, held = self._rows[maker], self._held[maker]
        held.append(block)
        for answer in answers:
            row.add(answer)
        if not row.count:
            self._write_all(held)

    def write_rest(self) -> None:
        for held in self._held.values():
            self._write_all(held)

    def _write_all(self, held: list[Block]) -> None:
        for block in held:
            self._write(block)
        held.clear()

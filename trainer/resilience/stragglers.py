"""Stragglers: ranks that are slower than the others, which then wait for them in every step.

As in NVIDIA's resiliency extension (NVRx) a rank's score in a part of a step is the time of the fastest rank divided by
its own, medians over some steps. One below `SLOW` is named, if that costs a noticeable share of the step. The time in
communication is no fault: ranks wait there for a slow one, which waits least itself.
"""

import statistics
from collections import Counter
from collections.abc import Sequence

SLOW = 0.7  # a lower score, which is NVRx's default
SHARE = 0.1  # of the step: what a part takes longer than on the fastest rank
NAMED = 3  # ranks in a message


class Comparison:
    """The ranks' seconds per step: a table (ranks, parts), whose last part is the communication."""

    def __init__(self, parts: Sequence[str], table: Sequence[Sequence[float]]) -> None:
        self.parts, self.table = parts, table
        self.columns = list(zip(*table, strict=True))

    def slow(self) -> dict[int, str]:
        """The slow ranks, the slowest first, and the part in which each is slow."""
        waits, found = self.columns[-1], {}
        usual = statistics.median_low(waits)
        for rank, row in enumerate(self.table):
            fastest = [min(column) for column in self.columns[:-1]]
            extra, part = max((own - best, i) for i, (own, best) in enumerate(zip(row, fastest, strict=False)))
            if extra > SHARE * sum(row) and fastest[part] < SLOW * row[part] and waits[rank] <= usual:
                found[rank] = extra, self.parts[part]
        return {rank: part for rank, (_, part) in sorted(found.items(), key=lambda item: -item[1][0])}

    def metrics(self) -> dict[str, float]:
        """Of each part the median rank's seconds and the slowest rank's, and which that is; how many ranks are slow."""
        values = {}
        for part, column in zip(self.parts, self.columns, strict=True):
            values[f"seconds/{part}"] = statistics.median(column)
            values[f"seconds/{part}_slowest"] = max(column)
            values[f"seconds/{part}_slowest_rank"] = float(column.index(max(column)))
        return values | {"seconds/slow_ranks": float(len(self.slow()))}

    def sentence(self, names: Sequence[str]) -> str:
        """Names the slow ranks; "" without one."""
        slow = self.slow()
        phrases = [self._phrase(rank, part, names) for rank, part in list(slow.items())[:NAMED]]
        more = f"; {len(slow) - NAMED} more are slow too" if len(slow) > NAMED else ""
        return f"{'; '.join(phrases)}{more}; the others wait for it" if slow else ""

    def _phrase(self, rank: int, part: str, names: Sequence[str]) -> str:
        column = self.columns[self.parts.index(part)]
        times = f"{column[rank] / min(column):.1f} times the fastest rank's" if min(column) else "the fastest rank's"
        return f"{names[rank]} is slow: {part} takes {column[rank]:.3g} s per step, {times} {min(column):.3g} s"


class History:
    """The comparisons of a run."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.comparisons = 0
        self.sums: list[list[float]] = []
        self.parts: Sequence[str] = ()
        self.slow: dict[int, Counter[str]] = {}
        self.latest: set[int] = set()

    def add(self, comparison: Comparison) -> str:
        """Returns a sentence if other ranks are slow than in the comparison before, otherwise ""."""
        self.comparisons, self.parts = self.comparisons + 1, comparison.parts
        rows = self.sums or [[0.0] * len(row) for row in comparison.table]
        pairs = zip(rows, comparison.table, strict=True)
        self.sums = [[a + b for a, b in zip(sums, row, strict=True)] for sums, row in pairs]
        slow, before = comparison.slow(), self.latest
        for rank, part in slow.items():
            self.slow.setdefault(rank, Counter())[part] += 1
        self.latest = set(slow)
        if self.latest == before:
            return ""
        return comparison.sentence(self.names) or "no rank is slow any more"

    def summary(self) -> list[str]:
        """Lines for the end of a run: the mean of each part, and which ranks were slow how often."""
        if not self.comparisons:
            return []
        phrases = []
        for part, column in zip(self.parts, zip(*self.sums, strict=True), strict=True):
            median, most = statistics.median(column) / self.comparisons, max(column) / self.comparisons
            slowest = f" (at most {most:.3g}, {self.names[column.index(max(column))]})" if len(column) > 1 else ""
            phrases.append(f"{part} {median:.3g} s{slowest}")
        lines = [f"per step: {', '.join(phrases)}"]
        for rank, parts in sorted(self.slow.items(), key=lambda item: -item[1].total()):
            part = parts.most_common(1)[0][0]
            lines.append(
                f"{self.names[rank]} was slow in {parts.total()} of {self.comparisons} comparisons, mostly in {part}"
            )
        if len(self.names) > 1 and not self.slow:
            lines.append("no rank was slow")
        return lines

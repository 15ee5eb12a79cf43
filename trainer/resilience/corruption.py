"""Silent corruption: a rank whose weights differ from the others' copies, or whose results differ the second time."""

from collections import Counter
from collections.abc import Hashable, Sequence

from ..core.cli import ExitCode
from ..core.english import join

REMEDY = (
    "a processor, its memory or its links are faulty; nothing was saved since. Leave that node out, and continue with "
    "--resume"
)
RESULTS = ("losses", "gradient")  # of a micro-batch


class FaultyError(OSError):
    """The device of a rank gives wrong results. All ranks raise it."""

    exit_code = ExitCode.FAULTY
    everywhere = True


def deviating(values: Sequence[Hashable]) -> list[int]:
    """The ranks whose value is not that of more than half of them; all ranks if there is no such value but several."""
    value, count = Counter(values).most_common(1)[0]
    if count == len(values):
        return []
    return [rank for rank, own in enumerate(values) if count <= len(values) / 2 or own != value]


def check_weights(models: Sequence[str], table: Sequence[Sequence[int]], step: int, names: Sequence[str]) -> None:
    """Raises FaultyError if the ranks' checksums (ranks, models) of a model's weights differ."""
    for model, values in zip(models, zip(*table, strict=True), strict=True):
        ranks = deviating(values)
        if not ranks:
            continue
        which, words = _named(ranks, names), "weights" if model == "model" else f"{model}'s weights"
        if len(ranks) == len(values):
            raise FaultyError(
                f"silent corruption by step {step}: the {words} of {which} differ, and no majority says which are "
                f"right; {REMEDY}"
            )
        raise FaultyError(
            f"silent corruption by step {step}: the {words} of {which} differ from those of the other "
            f"{len(values) - len(ranks)} ranks; {REMEDY}"
        )


class Repetitions:
    """The judgement of micro-batches that each rank has computed twice.

    Kernels may add up gradients in an order that changes (atomic additions do). Then they differ on most ranks, on one
    rank alone from the first time on, and are not compared from then on.
    """

    def __init__(self) -> None:
        self.compared = dict.fromkeys(RESULTS, True)
        self.confirmed = dict.fromkeys(RESULTS, False)  # they were the same on all ranks once

    def check(self, table: Sequence[Sequence[int]], step: int, names: Sequence[str]) -> str:
        """A row has a rank's checksums of losses and gradient, twice. Returns a sentence if a kind of result is not
        compared any more, otherwise "". Raises FaultyError with the ranks whose two differ."""
        for index, result in enumerate(RESULTS):
            ranks = [rank for rank, row in enumerate(table) if row[index] != row[index + len(RESULTS)]]
            if not ranks:
                self.confirmed[result] = True
            elif not self.compared[result]:
                continue
            elif len(ranks) > len(table) / 2 and not (len(table) == 1 and self.confirmed[result]):
                self.compared[result] = False
                return (
                    f"step {step}: the {result} of the same micro-batch differed the second time on {len(ranks)} of "
                    f"{len(table)} ranks, so it is the kernels rather than a device: they are not compared any more"
                )
            else:
                raise FaultyError(
                    f"silent corruption in step {step}: the {result} of the same micro-batch differed the second time "
                    f"on {_named(ranks, names)}; {REMEDY}"
                )
        return ""


def _named(ranks: Sequence[int], names: Sequence[str]) -> str:
    more = [f"{len(ranks) - 8} more"] if len(ranks) > 8 else []
    return join([*(names[rank] for rank in ranks[:8]), *more])

"""Whose turn it is, and learning rates."""

from dataclasses import dataclass
from enum import Enum

from .config import ScheduleConfig


def learning_rate(config: ScheduleConfig, base: float, step: int, steps: int) -> float:
    """The rate of update `step` (from 0) of `steps` (section VI-A, InverseLR; `cooldown` is ours)."""
    ramp = 1 - config.warmup ** (step + 1)
    rate = ramp * max(config.final_lr, base * (1 + step / config.inv_gamma) ** -config.power)
    start = steps * (1 - config.cooldown)
    return rate * (steps - step) / (steps - start) if step > start else rate


class Phase(Enum):
    """What an update of distillation trains, and how."""

    WARM_START = "warm_start"  # the student, on the teacher's ODE endpoints
    FAKE_WARM_UP = "fake_warm_up"  # the fake model alone, until it has caught up with the student
    STUDENT = "student"
    FAKE = "fake"
    DISCRIMINATOR = "discriminator"


@dataclass(frozen=True)
class Cycle:
    """The order of a distillation's updates: warm start, the fake model's warm-up, then rounds of `student` updates of
    the student, `fake` of the fake model and `discriminator` of the discriminator, in this order (section VI-A)."""

    student: int
    fake: int
    discriminator: int
    warm_start: int = 0
    fake_warm_up: int = 0

    @property
    def round(self) -> int:
        return self.student + self.fake + self.discriminator

    @property
    def before(self) -> int:
        """Updates before the first round."""
        return self.warm_start + self.fake_warm_up

    def phase(self, update: int) -> Phase:
        """What update number `update` (from 0) does."""
        if update < self.before:
            return Phase.WARM_START if update < self.warm_start else Phase.FAKE_WARM_UP
        place = (update - self.before) % self.round
        if place < self.student:
            return Phase.STUDENT
        return Phase.FAKE if place < self.student + self.fake else Phase.DISCRIMINATOR

    def turns(self, phases: tuple[Phase, ...], update: int) -> int:
        """How many updates before number `update` were of these phases: the place in a role's own schedule."""
        done = {Phase.WARM_START: min(update, self.warm_start)}
        done[Phase.FAKE_WARM_UP] = min(update, self.before) - done[Phase.WARM_START]
        rounds, place = divmod(max(0, update - self.before), self.round)
        first = 0
        for phase, each in (
            (Phase.STUDENT, self.student),
            (Phase.FAKE, self.fake),
            (Phase.DISCRIMINATOR, self.discriminator),
        ):
            done[phase] = rounds * each + min(max(0, place - first), each)
            first += each
        return sum(done[phase] for phase in phases)

    def ends_round(self, update: int) -> bool:
        """Whether update `update` completes a round, or comes before the first."""
        done = update + 1 - self.before
        return done <= 0 or done % self.round == 0

    def total(self, steps: int) -> int:
        """Updates of all roles until the student has had `steps` in rounds, the last of which is whole."""
        return self.before + -(-steps // self.student) * self.round

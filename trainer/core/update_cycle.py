"""The turns of a distillation: the role that an update trains."""

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """The model that an update trains, and its objective."""

    WARM_START = "warm_start"  # the student, by regression on its teacher
    FAKE_WARM_UP = "fake_warm_up"  # the fake model alone, until it follows the student
    DISCRIMINATOR_WARM_UP = "discriminator_warm_up"  # the same of the discriminator
    STUDENT = "student"
    FAKE = "fake"
    DISCRIMINATOR = "discriminator"


@dataclass(frozen=True)
class UpdateCycle:
    """The order of a distillation's updates (section VI-A): warm start, warm-ups of fake model and discriminator, then
    rounds. A round is `student` updates of the student, `fake` of the fake model and `discriminator` of the
    discriminator."""

    student: int
    fake: int
    discriminator: int
    warm_start: int = 0
    fake_warm_up: int = 0
    discriminator_warm_up: int = 0

    @property
    def updates_per_round(self) -> int:
        return self.student + self.fake + self.discriminator

    @property
    def first_round(self) -> int:
        """The update that begins the first round."""
        return self.warm_start + self.fake_warm_up + self.discriminator_warm_up

    def phase(self, update: int) -> Phase:
        """The phase of update number `update` (from 0)."""
        if update < self.warm_start:
            return Phase.WARM_START
        if update < self.first_round:
            fake = update < self.warm_start + self.fake_warm_up
            return Phase.FAKE_WARM_UP if fake else Phase.DISCRIMINATOR_WARM_UP
        place = (update - self.first_round) % self.updates_per_round
        if place < self.student:
            return Phase.STUDENT
        return Phase.FAKE if place < self.student + self.fake else Phase.DISCRIMINATOR

    def count(self, phases: tuple[Phase, ...], update: int) -> int:
        """Updates of these phases before number `update`: the position in a role's own schedule."""
        done, left = {}, update
        for phase, each in (
            (Phase.WARM_START, self.warm_start),
            (Phase.FAKE_WARM_UP, self.fake_warm_up),
            (Phase.DISCRIMINATOR_WARM_UP, self.discriminator_warm_up),
        ):
            done[phase] = min(left, each)
            left -= done[phase]
        rounds, place = divmod(left, self.updates_per_round)
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
        """Whether this update completes a round, or comes before the first one."""
        done = update + 1 - self.first_round
        return done <= 0 or done % self.updates_per_round == 0

    def total_updates(self, steps: int) -> int:
        """Updates of all roles until the student has had `steps` of its own in rounds; the last round is complete."""
        return self.first_round + -(-steps // self.student) * self.updates_per_round

"""The number of a distillation's updates that a budget of operations pays for."""

from dataclasses import replace
from statistics import mean

from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase
from .operations import distillation_flops, pass_flops
from .passes import endpoint_pass, step_probabilities

PAIRS, EPOCHS = 0.98, 4  # share of a small budget for the pairs and the regression on them; epochs of that regression


def rounds_within_budget(config: DistillConfig, budget: float, text_tokens: int) -> int:
    """Whole rounds (at least one) that a budget of operations pays for, after the warm-ups, if every update had one
    sample. The student's step is averaged over."""

    def expected(phase: Phase) -> float:
        chances = step_probabilities(config, phase)
        return sum(chance * distillation_flops(config, phase, k, text_tokens) for k, chance in enumerate(chances))

    cycle = config.cycle
    before = sum(expected(cycle.phase(update)) for update in range(cycle.first_round))
    each = sum(expected(cycle.phase(cycle.first_round + update)) for update in range(cycle.updates_per_round))
    return max(1, int((budget - before) / each))


def divide_budget(config: DistillConfig, budget: float) -> tuple[int, int, int]:
    """A budget of operations as a number of pairs, of updates of the regression on them, and of training steps in
    rounds. `config` has pairs."""
    batch, tokens, warm = config.training.global_batch, config.model.text.max_tokens, config.warm_start
    pair = pass_flops(config.model, endpoint_pass(config), tokens)
    regression = mean(distillation_flops(config, Phase.WARM_START, k, tokens) for k in range(config.sampling.steps))
    count = max(batch, int(PAIRS * budget / (pair + EPOCHS * regression)))
    updates = EPOCHS * count // batch
    warmed = replace(config, warm_start=replace(warm, updates=updates))
    rounds = rounds_within_budget(warmed, (budget - count * pair) / batch, tokens)
    return count, updates, rounds * config.updates.counts[0]

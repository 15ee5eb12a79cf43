"""The number of a distillation's updates that a budget of operations pays for."""

from dataclasses import replace

from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase
from .operations import distillation_flops, pass_flops
from .passes import ode_passes, step_probabilities

WARM_START = 0.98  # share of a small budget for the warm start, its pairs included
EPOCHS = 4  # of the regression on pairs


def expected_flops(config: DistillConfig, phase: Phase, text_tokens: int) -> float:
    """Operations per sample of an update, averaged over the student's step."""
    chances = step_probabilities(config, phase)
    return sum(chance * distillation_flops(config, phase, k, text_tokens) for k, chance in enumerate(chances))


def rounds_within_budget(config: DistillConfig, budget: float, text_tokens: int) -> int:
    """Whole rounds (at least one) that a budget of operations pays for, after the warm-ups, if every update had one
    sample."""
    cycle = config.cycle
    before = sum(expected_flops(config, cycle.phase(update), text_tokens) for update in range(cycle.first_round))
    a_round = range(cycle.first_round, cycle.first_round + cycle.updates_per_round)
    return max(1, int((budget - before) / sum(expected_flops(config, cycle.phase(u), text_tokens) for u in a_round)))


def divide_budget(config: DistillConfig, budget: float) -> tuple[int, int, int]:
    """A budget of operations as a number of pairs, of updates of the warm start, and of training steps in rounds.
    There are pairs where `config` has them."""
    batch, tokens, warm = config.training.global_batch, config.model.text.max_tokens, config.warm_start
    regression, pair, count = expected_flops(config, Phase.WARM_START, tokens), 0, 0
    if config.warm_start.pairs:
        pair = sum(pass_flops(config.model, one, tokens) for one in ode_passes(config))
        count = max(batch, int(WARM_START * budget / (pair + EPOCHS * regression)))
        updates = EPOCHS * count // batch
    else:
        updates = max(1, int(WARM_START * budget / (batch * regression)))
    warmed = replace(config, warm_start=replace(warm, updates=updates))
    rounds = rounds_within_budget(warmed, (budget - count * pair) / batch, tokens)
    return count, updates, rounds * config.updates.counts[0]

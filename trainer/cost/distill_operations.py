"""Operations of a distillation, counted as `flops.py` counts them."""

from dataclasses import replace
from statistics import mean

from ..core.distill_config import DistillConfig
from ..core.update_cycle import Phase
from .operations import forward_flops

PAIRS, PASSES = 0.98, 4  # the share of a small budget for pairs and the regression on them, which passes so often


def update_flops(config: DistillConfig, phase: Phase, k: int, text_tokens: int) -> int:
    """Of one sample in an update about the student's step `k`. A backward counts two forwards; where only z gets a
    gradient it counts one, without the conditioner."""
    settings, warm = config.distillation, config.warm_start
    parts = forward_flops(config.model, text_tokens)
    whole, conditioner = parts["total"], parts["temporal"] + parts["fusion"]
    trunk = forward_flops(config.model, text_tokens, settings.discriminator_blocks)["total"]
    guided = 1 if settings.teacher_guidance == 1 else 2
    sampling = whole * k  # up to z at this step
    if phase is Phase.WARM_START:
        return 3 * whole + sampling * warm.rollout + (0 if warm.pairs else guided * whole * warm.ode_steps)
    if phase is Phase.STUDENT:
        through_z = {"dmd": 0, "eq10": guided + 1, "eq10_sg_teacher": 1}[settings.loss]
        matching = (guided + 1) * whole + through_z * (whole - conditioner)
        adversarial = 2 * trunk - conditioner if settings.adversarial_weight else 0
        return sampling + 3 * whole + matching + adversarial
    return sampling + whole + (2 * trunk if phase is Phase.DISCRIMINATOR else 3 * whole)


def rounds_within(config: DistillConfig, budget: float, text_tokens: int) -> int:
    """How many whole rounds (one at least) a budget of operations pays, after what comes before them, if every update
    had one sample; the student's step is taken at its mean."""

    def expected(phase: Phase) -> float:
        shares = config.distillation.step_probabilities
        return sum(p * update_flops(config, phase, k, text_tokens) for k, p in enumerate(shares))

    cycle = config.cycle
    before = sum(expected(cycle.phase(update)) for update in range(cycle.first_round))
    each = sum(expected(cycle.phase(cycle.first_round + update)) for update in range(cycle.updates_per_round))
    return max(1, int((budget - before) / each))


def divided(config: DistillConfig, budget: float) -> tuple[int, int, int]:
    """A budget of operations in pairs, updates of the regression on them, and training steps in rounds; `config` has
    pairs."""
    batch, tokens, warm = config.training.global_batch, config.model.text.max_tokens, config.warm_start
    pair = warm.ode_steps * 2 * forward_flops(config.model, tokens)["total"]
    regression = mean(update_flops(config, Phase.WARM_START, k, tokens) for k in range(config.sampling.steps))
    count = max(batch, int(PAIRS * budget / (pair + PASSES * regression)))
    updates = PASSES * count // batch
    begun = replace(config, warm_start=replace(warm, updates=updates))
    rounds = rounds_within(begun, (budget - count * pair) / batch, tokens)
    return count, updates, rounds * config.updates.counts[0]

"""Operations of a distillation, counted as `flops.py` counts them."""

from .distill_config import DistillConfig
from .flops import forward_flops
from .schedule import Phase


def update_flops(config: DistillConfig, phase: Phase, k: int, text_tokens: int) -> int:
    """Of one sample in an update about the student's step `k`. A backward counts two forwards; where only z gets a
    gradient it counts one, without the conditioner."""
    settings, warm = config.distillation, config.warm_start
    parts = forward_flops(config.model, text_tokens)
    whole, conditioner = parts["total"], parts["temporal"] + parts["fusion"]
    trunk = forward_flops(config.model, text_tokens, settings.blocks)["total"]
    guided = 1 if settings.guidance == 1 else 2
    sampling = whole * k  # up to z at this step
    if phase is Phase.WARM_START:
        return 3 * whole + (0 if warm.pairs else guided * whole * warm.steps)
    if phase is Phase.STUDENT:
        through_z = {"dmd": 0, "eq10": guided + 1, "eq10_sg_teacher": 1}[settings.loss]
        matching = (guided + 1) * whole + through_z * (whole - conditioner)
        adversarial = 2 * trunk - conditioner if settings.adversarial else 0
        return sampling + 3 * whole + matching + adversarial
    return sampling + whole + (2 * trunk if phase is Phase.DISCRIMINATOR else 3 * whole)


def rounds_within(config: DistillConfig, budget: float, text_tokens: int) -> int:
    """How many whole rounds (one at least) a budget of operations pays, after what comes before them, if every update
    had one sample; the student's step is taken at its mean."""

    def mean(phase: Phase) -> float:
        shares = config.distillation.probabilities
        return sum(p * update_flops(config, phase, k, text_tokens) for k, p in enumerate(shares))

    cycle = config.cycle
    before = sum(mean(cycle.phase(update)) for update in range(cycle.before))
    each = sum(mean(cycle.phase(cycle.before + update)) for update in range(cycle.round))
    return max(1, int((budget - before) / each))

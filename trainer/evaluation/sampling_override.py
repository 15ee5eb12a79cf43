"""Samplings on the command line: N[:SAMPLER[:GUIDANCE[:LOWEST-HIGHEST]]]."""

import argparse
from dataclasses import dataclass
from typing import get_args

from ...models.audiox import Kind, SamplingConfig
from ...models.interval import parse_interval
from ...models.sampler import override_sampling

SAMPLERS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class SamplingOverride:
    """What replaces settings of some weights' own sampling; None leaves one as it is."""

    steps: int
    kind: Kind | None
    guidance: float | None
    interval: tuple[float, float] | None  # noise levels with guidance

    def of(self, sampling: SamplingConfig) -> SamplingConfig:
        return override_sampling(sampling, self.steps, self.guidance, self.kind, interval=self.interval)

    @property
    def words(self) -> str:
        words = [f"{self.steps} {self.kind} steps" if self.kind else f"{self.steps} steps"]
        words += [] if self.guidance is None else [f"guidance {self.guidance:g}"]
        words += ["guided from {:g} to {:g}".format(*self.interval)] if self.interval else []
        return ", ".join(words)


def sampling_override(text: str) -> SamplingOverride:
    """A type of argparse."""
    steps, kind, guidance, levels = (*text.split(":"), "", "", "")[:4]
    try:
        if text.count(":") > 3 or kind not in ("", *SAMPLERS):
            raise ValueError
        kinds = {str(one): one for one in SAMPLERS}
        scale = float(guidance) if guidance else None
        return SamplingOverride(int(steps), kinds.get(kind), scale, parse_interval(levels) if levels else None)
    except ValueError:
        allowed = f"N[:SAMPLER[:GUIDANCE[:LOWEST-HIGHEST]]] with a sampler of {', '.join(SAMPLERS)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None


def interval(text: str) -> tuple[float, float]:
    """A type of argparse."""
    try:
        return parse_interval(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

"""What questions to a model cost: tokens, and money by its price."""

import math
from dataclasses import dataclass

AUDIO_TOKENS = 32.0  # per second of sound, of the models that the paper's judge belongs to
PICTURE_TOKENS = 258  # per small picture, of the same models
LETTERS = 4  # per token of text
USAGE = ("requests", "tokens read", "tokens written")  # names of the amounts of `Usage`


@dataclass(frozen=True)
class Price:
    """Money per million tokens, and the tokens of a second of sound. Raises ValueError where one cannot be."""

    per_input: float = 0.0
    per_output: float = 0.0
    audio_tokens: float = AUDIO_TOKENS

    def __post_init__(self) -> None:
        prices = ("--price", self.per_input), ("--price", self.per_output)
        for name, number in (*prices, ("--audio-tokens", self.audio_tokens)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} {number:g}: must be a finite number, 0 or more")

    def check_limit(self, at_most: float | None) -> None:
        """Raises ValueError if this is no limit of money, or nothing has a price."""
        if at_most is not None and not 0 <= at_most < math.inf:
            raise ValueError(f"--at-most {at_most:g}: must be a finite number, 0 or more")
        if at_most is not None and not (self.per_input or self.per_output):
            raise ValueError(f"--at-most {at_most:g}: without a price nothing is above it; give --price IN OUT")

    def money(self, read: float, written: float) -> float:
        """Of so many tokens read and written."""
        return (read * self.per_input + written * self.per_output) / 1e6


@dataclass
class Usage:
    """Requests to a model, and the tokens that they take: those that the server counted, or that a forecast expects."""

    requests: int = 0
    read: float = 0.0
    written: float = 0.0

    def add(self, other: "Usage") -> None:
        self.requests += other.requests
        self.read += other.read
        self.written += other.written

    def amounts(self) -> dict[str, float]:
        """By name, without those that are 0."""
        amounts = zip(USAGE, (self.requests, self.read, self.written), strict=True)
        return {name: float(amount) for name, amount in amounts if amount}

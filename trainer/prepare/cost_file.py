"""What a preparation costs: the forecast, and beside it what the blocks have taken.

The file is no part of the result: two machines take different times for the same bytes.
"""

from dataclasses import dataclass, field, replace

from ...models import strict
from ..data.storage import Store
from ..manifest.forecast import Forecast
from ..workers.effort import Effort
from .manifest_blocks import json_bytes

COST_FILE = "prepare_cost.json"


@dataclass(frozen=True)
class Cost:
    """Of a preparation so far, whoever made its blocks."""

    forecast: Forecast
    taken: Effort = field(default_factory=Effort)

    def __str__(self) -> str:
        return f"took {self.taken}, forecast {self.forecast.effort}" if self.forecast.effort else ""

    def after(self, block: Effort, share: float) -> "Cost":
        """With a block, which is a `share` of the lines. The first one says what the whole will take."""
        forecast = self.forecast if self.forecast.effort else replace(self.forecast, effort=block * (1 / share))
        return Cost(forecast, self.taken + block)


def read_cost(store: Store) -> Cost | None:
    """None where there is no such file, as in a preparation of an earlier revision, or it is damaged."""
    try:
        cost: Cost = strict.parse(Cost, strict.parse_json(store.read(COST_FILE) or b""))
    except ValueError:
        return None
    return cost


def write_cost(store: Store, cost: Cost) -> None:
    """Raises OSError."""
    store.write(COST_FILE, json_bytes(strict.to_dict(cost)))

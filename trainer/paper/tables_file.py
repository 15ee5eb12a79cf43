"""The file that says which report goes into which row of the paper's tables.

{"rows": [{"table": "I", "task": "T2A", "dataset": "AudioCaps", "method": "ours", "reports": ["audiocaps.json"]}],
 "players": [{"text": "a dog barks", "sounds": {"reference": "true/7.wav", "ours": "turbo/7.wav"}}]}
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ...models import strict
from ..core.config_reader import read_json
from ..core.english import join
from .layout import ALIGN, LAYOUTS

TableName = Literal["I", "II", "III", "A.4", "A.5", "A.6", "A.7", "A.8"]
TaskLabel = Literal["T2A", "V2A", "TV2A", "T2M", "V2M", "TV2M", "A2A", "M2M"]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class TableRow:
    """`reports` are files of launch/evaluate.py, launch/t2a_bench.py, launch/steam.py or `launch/bench.py latency`;
    `sounds` is the name of the row's folder or weights in them, which may be left out where they have one only."""

    table: TableName
    method: Text
    reports: Annotated[tuple[Text, ...], Field(min_length=1)]
    sounds: str = ""
    task: TaskLabel | Literal[""] = ""
    dataset: str = ""
    conditions: str = ""  # as A, A+T: what an inpainting or a completion is given
    steps: strict.Positive | None = None
    nfe: strict.Positive | None = None
    ours: bool = False  # marked in the page

    def __post_init__(self) -> None:
        needed = LAYOUTS[self.table].keys
        if missing := [name for name in needed if not getattr(self, name)]:
            raise ValueError(f"{missing[0]}: missing; a row of Table {self.table} needs {join(needed)}")


@dataclass(frozen=True)
class Player:
    """Sounds of one prompt, by what the page calls them."""

    text: Text
    sounds: Annotated[dict[str, Text], Field(min_length=1)]


@dataclass(frozen=True)
class TablesFile:
    """`metrics`: what a column is called in the reports, as {"FD": "FD panns"}, where that is not its own name.
    `published`: add what the paper prints for the same tables and sets, as far as its text has it."""

    rows: Annotated[tuple[TableRow, ...], Field(min_length=1)]
    players: tuple[Player, ...] = ()
    metrics: dict[str, Text] = field(default_factory=dict)
    published: bool = True
    title: str = "Tables"

    def __post_init__(self) -> None:
        known = {column.heading for layout in LAYOUTS.values() for column in layout.columns}
        if strange := [name for name in self.metrics if name not in known]:
            raise ValueError(f"metrics: {strange[0]!r} is no column; columns are {join(sorted(known - {ALIGN}))}")


def read_tables_file(path: Path) -> TablesFile:
    """Raises ValueError where the file is missing, not JSON, or says something that is not allowed."""
    try:
        return strict.parse(TablesFile, read_json(path))
    except OSError as error:
        raise ValueError(f"{path}: {str(error.strerror).lower()}; give the file with the rows of the tables") from None
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from None


def read_report(path: Path) -> dict[str, Any]:
    """Raises ValueError where it is missing or no JSON object."""
    try:
        return read_json(path)
    except OSError as error:
        raise ValueError(
            f"{path}: {str(error.strerror).lower()}; make the report first, by launch/evaluate.py --out {path}"
        ) from None

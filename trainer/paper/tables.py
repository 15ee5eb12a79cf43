"""The paper's tables from reports, with the best and the second best of each column marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import write_json, write_text
from ..pages.embedded_media import SoundComparison
from ..pages.render import write_page
from ..pages.tables import Cell, Table, as_latex, as_markdown
from ..sound_evaluation.report import compare_files
from .figures import Figure, RowFigures, row_figures
from .layout import ALIGN, ALIGNED_WITH, IMAGE_TO_AUDIO, LAYOUTS, Column, Layout
from .tables_file import TableRow, TablesFile, read_report

PUBLISHED = Path(__file__).with_name("published.json")
KEY_HEADINGS = {"task": "Task", "dataset": "Dataset", "conditions": "Conditions", "steps": "Steps", "nfe": "NFE"}
BEST, SECOND = 1, 2
Values = dict[str, Figure]  # by the heading of the column


@dataclass(frozen=True)
class PaperRow:
    """A row with what stands in it; `published` ones are the paper's own, and are not compared."""

    keys: dict[str, Any]
    method: str
    figures: Values
    ranks: dict[str, int]  # BEST or SECOND by heading
    ours: bool = False
    published: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper by its number."""

    number: str
    rows: list[PaperRow]

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.number]


def build_tables(file: TablesFile, folder: Path) -> list[PaperTable]:
    """The tables that have rows, in the paper's order. Raises ValueError as `row_figures`, and where two rows are the
    same one."""
    tables = []
    for number, layout in LAYOUTS.items():
        rows = [row for row in file.rows if row.table == number]
        if not rows:
            continue
        found = [_row(row, layout, row_figures(row, folder), file) for row in rows]
        for i, row in enumerate(found):
            if any((row.keys, row.method) == (other.keys, other.method) for other in found[:i]):
                about = ", ".join(str(value) for value in (row.method, *row.keys.values()))
                raise ValueError(f"rows: Table {number} has two rows of {about}; give one of them another method")
        published = _published(number, found) if file.published else []
        tables.append(PaperTable(number, _sorted([*_ranked(found, layout), *published], layout)))
    return tables


def _row(row: TableRow, layout: Layout, found: RowFigures, file: TablesFile) -> PaperRow:
    keys = {key: getattr(row, key) for key in layout.keys}
    if "steps" in keys:
        keys["nfe"] = found.nfe
    values: Values = {}
    for column in layout.columns:
        names = (file.metrics[column.heading],) if column.heading in file.metrics else _metrics(column, row)
        if there := [found.figures[name] for name in names if name in found.figures]:
            values[column.heading] = there[0]
    if not values:
        has = ", ".join(sorted(found.figures)) or "nothing"
        raise ValueError(
            f"rows: the reports of {row.method} have no column of Table {row.table}; they have {has}. Name theirs "
            f"under `metrics`"
        )
    return PaperRow(keys, row.method, values, {}, row.ours)


def _metrics(column: Column, row: TableRow) -> tuple[str, ...]:
    """Align. is with the pictures where the task has some (Table A.8's has no others), and with the text otherwise."""
    if column.heading != ALIGN:
        return column.metrics
    return ALIGNED_WITH["video" if row.table == IMAGE_TO_AUDIO or "V" in (row.task or row.conditions) else "text"]


def _ranked(rows: Sequence[PaperRow], layout: Layout) -> list[PaperRow]:
    """Best and second best among the rows of a group, where at least two have the figure. Equal ones share a rank."""
    ranks: list[dict[str, int]] = [{} for _ in rows]
    for group in {_group(row, layout) for row in rows}:
        for column in layout.columns:
            scores = {
                i: _score(row.figures[column.heading].value, column.better)
                for i, row in enumerate(rows)
                if _group(row, layout) == group and column.heading in row.figures and column.better
            }
            best = sorted(set(scores.values()))[:2] if len(scores) > 1 else []
            for i, score in scores.items():
                if score in best:
                    ranks[i][column.heading] = (BEST, SECOND)[best.index(score)]
    return [PaperRow(r.keys, r.method, r.figures, rank, r.ours) for r, rank in zip(rows, ranks, strict=True)]


def _score(value: float, better: str) -> float:
    return {"lower": value, "higher": -value, "zero": abs(value)}[better]


def _group(row: PaperRow, layout: Layout) -> tuple[Any, ...]:
    return tuple(row.keys[key] for key in layout.group)


def _published(number: str, rows: Sequence[PaperRow]) -> list[PaperRow]:
    """What the paper prints for the sets of these rows."""
    sets = {row.keys.get("dataset") for row in rows}
    found = []
    for row in read_report(PUBLISHED)["rows"]:
        if row["table"] == number and row["dataset"] in sets:
            figures = {
                name: Figure(value[0], std=value[1]) if isinstance(value, list) else Figure(value)
                for name, value in row["figures"].items()
            }
            keys = {key: row[key] for key in ("dataset", "steps", "nfe")}
            found.append(PaperRow(keys, row["method"], figures, {}, published=True))
    return found


def _sorted(rows: list[PaperRow], layout: Layout) -> list[PaperRow]:
    """Rows of a group together, in the order in which the file has the groups; the paper's own first."""
    groups = list(dict.fromkeys(_group(row, layout) for row in rows))
    return sorted(rows, key=lambda row: (groups.index(_group(row, layout)), not row.published))


def as_table(table: PaperTable) -> Table:
    """For a page, Markdown, LaTeX or a terminal. Columns without any figure are left out."""
    columns = [c for c in table.layout.columns if any(c.heading in row.figures for row in table.rows)]
    keys = list(table.rows[0].keys)
    rows = [
        [
            Cell(f"{row.method}{' (paper)' if row.published else ''}", ours=row.ours),
            *(Cell(str(row.keys[key] if row.keys[key] is not None else "–")) for key in keys),
            *(_cell(row, column) for column in columns),
        ]
        for row in table.rows
    ]
    headings = ("Method", *(KEY_HEADINGS[key] for key in keys), *(column.title for column in columns))
    return Table(f"Table {table.number}: {table.layout.title}", _note(table), headings, rows)


def _note(table: PaperTable) -> str:
    note = "Best in bold, second best underlined"
    if table.layout.group:
        note += f", among rows of the same {' and '.join(table.layout.group)}"
    note += ". Intervals of 95 %; ± is the standard deviation of runs."
    if any(row.published for row in table.rows):
        note += (
            " Rows marked (paper) are printed there; they were measured by others and elsewhere, and are not ranked."
        )
    return note


def _cell(row: PaperRow, column: Column) -> Cell:
    figure = row.figures.get(column.heading)
    if figure is None:
        return Cell("–")
    text = f"{figure.value:.{column.digits}f}"
    if figure.std is not None:
        text += f" ± {figure.std:.3f}"
    has = figure.low is not None and figure.high is not None
    interval = f"{figure.low:.{column.digits}f} to {figure.high:.{column.digits}f}" if has else ""
    return Cell(text, interval, row.ranks.get(column.heading, 0))


def players(file: TablesFile, folder: Path) -> list[SoundComparison]:
    """The hand-picked sounds. Raises ValueError for one that is missing or cannot be decoded."""
    return [
        compare_files(player.text, [(name, folder / path) for name, path in player.sounds.items()])
        for player in file.players
    ]


def write_tables(file: TablesFile, tables: Sequence[PaperTable], folder: Path, out: Path) -> list[Path]:
    """tables.html, tables.md, tables.tex and tables.json in `out`; players' paths start from `folder`."""
    shown, sounds = [as_table(table) for table in tables], players(file, folder)
    paths = [out / f"tables.{ending}" for ending in ("html", "md", "tex", "json")]
    write_page(paths[0], "tables.html", title=file.title, tables=shown, comparisons=sounds)
    write_text(paths[1], "\n\n".join(as_markdown(table) for table in shown) + "\n")
    write_text(paths[2], "\n\n".join(as_latex(table) for table in shown) + "\n")
    write_json(paths[3], {"tables": [_as_json(table) for table in tables]})
    return paths


def _as_json(table: PaperTable) -> dict[str, Any]:
    rows = [
        {"method": row.method, **row.keys, "published": row.published, "ours": row.ours, "ranks": row.ranks}
        | {"figures": {name: _compact(figure) for name, figure in row.figures.items()}}
        for row in table.rows
    ]
    return {"table": table.number, "title": table.layout.title, "rows": rows}


def _compact(figure: Figure) -> dict[str, float]:
    return {name: value for name, value in vars(figure).items() if value is not None}

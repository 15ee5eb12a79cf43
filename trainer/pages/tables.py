"""Tables of a report: for a page, as text for a terminal, as Markdown and as LaTeX."""

from dataclasses import dataclass
from html import escape

MARKDOWN = ("{}", "**{}**", "<u>{}</u>")  # by rank
LATEX = ("{}", "\\textbf{{{}}}", "\\underline{{{}}}")
LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "∞": r"$\infty$",
}


@dataclass(frozen=True)
class Cell:
    """A value and its 95 % interval, both as text. `rank` 1 is the best of its column, 2 the second best; a row whose
    first cell is `ours` stands out."""

    text: str
    interval: str = ""
    rank: int = 0
    ours: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    headings: tuple[str, ...]
    rows: list[list[Cell]]


def as_text(table: Table) -> str:
    """For a terminal: columns aligned, intervals in brackets."""
    cells = [[c.text + (f" [{c.interval}]" if c.interval else "") for c in row] for row in table.rows]
    lines = [list(table.headings), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([table.title, *body, table.note])


def as_markdown(table: Table) -> str:
    """For a model card: the intervals in brackets, the best of a column bold, the second best underlined."""
    heads = [_markdown(heading) for heading in table.headings]
    cells = [
        [
            MARKDOWN[c.rank].format(_markdown(c.text)) + (f" [{_markdown(c.interval)}]" if c.interval else "")
            for c in row
        ]
        for row in table.rows
    ]
    head, *body = ["| " + " | ".join(line) + " |" for line in (heads, *cells)]
    return "\n".join([f"**{table.title}**", "", head, "|---" * len(table.headings) + "|", *body, "", table.note])


def _markdown_cell(cell: Cell) -> str:
    text = MARKDOWN[cell.rank].format(_markdown(cell.text))
    return f"{text} [{_markdown(cell.interval)}]" if cell.interval else text


def _markdown(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def as_latex(table: Table) -> str:
    """A table for the package booktabs, without intervals: its columns would not fit on a page."""
    lines = [" & ".join(_latex(heading) for heading in table.headings)]
    lines += [" & ".join(LATEX[cell.rank].format(_latex(cell.text)) for cell in row) for row in table.rows]
    head, *body = (f"{line} \\\\" for line in lines)
    return "\n".join(
        [
            r"\begin{table}",
            f"\\caption{{{_latex(table.title)}. {_latex(table.note)}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex(text: str) -> str:
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)

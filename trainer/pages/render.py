"""Renders pages from templates/: self-contained documents that need neither scripts nor network."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..core.files import write_text
from . import charts, embedded_media


@lru_cache(1)
def environment() -> Environment:
    """Escapes every text that is not marked as safe; an unknown name is an error."""
    result = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    result.globals |= {"charts": charts, "media": embedded_media}
    return result


def render(template: str, **values: Any) -> str:
    return environment().get_template(template).render(values)


def write_page(path: Path, template: str, **values: Any) -> None:
    write_text(path, render(template, **values))

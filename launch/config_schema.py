"""Write configs/schema/: the JSON Schemas by which an editor completes, explains and checks configurations.

examples:
  python launch/config_schema.py
"""

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from audiox_trainer.models import strict
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config import PretrainConfig
from audiox_trainer.trainer.core.config_reader import SHIPPED
from audiox_trainer.trainer.core.distill_config import DistillConfig
from audiox_trainer.trainer.core.files import json_text, write_text
from audiox_trainer.trainer.manifest.manifest import line_schema
from audiox_trainer.trainer.stages.filter_config import LineFilters

KINDS = {"pretraining": PretrainConfig, "distillation": DistillConfig, "filters": LineFilters}
COMMENT = re.compile(r"    (\w+): .*  # (.+)")
READER_KEYS = {
    "$schema": {"type": "string", "description": "for editors"},
    "extends": {"type": "string", "description": "the configuration that this one changes: a path from here"},
}


def text(kind: type) -> str:
    """The schema of one kind of configuration. No key is required: the extended file may have it."""
    schema = strict.json_schema(kind)
    for cls in set(dataclasses_of(kind)):
        properties = (schema if cls is kind else schema["$defs"][cls.__name__])["properties"]
        for base in reversed(cls.__mro__[:-1]):
            for name, comment in COMMENT.findall(inspect.getsource(base)):
                properties[name]["description"] = comment
    schema["properties"] = READER_KEYS | schema["properties"]
    return json.dumps(strict.without(schema, ("required", "title")), indent=1, ensure_ascii=False) + "\n"


def dataclasses_of(kind: Any) -> Iterator[type]:
    """A dataclass, and all that the types of its fields reach."""
    for inner in getattr(kind, "__args__", ()):
        yield from dataclasses_of(inner)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for field in dataclasses.fields(kind):
            yield from dataclasses_of(field.type)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return cli.parser(__doc__).parse_args(argv)


def main() -> int:
    parse()

    def run() -> None:
        schemas = {name: text(kind) for name, kind in KINDS.items()} | {"manifest_line": json_text(line_schema())}
        for name, schema in schemas.items():
            write_text(SHIPPED / "schema" / f"{name}.json", schema)
            print(SHIPPED / "schema" / f"{name}.json")

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())

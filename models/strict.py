"""JSON to frozen dataclasses and back. Unknown, missing and ill-typed keys are refused.

pydantic checks the types; the sentences are ours, because they name the allowed keys and values.
"""

import dataclasses
import difflib
import json
from collections.abc import Collection, Iterator
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .renamed_keys import RENAMED

T = TypeVar("T")

# Types of fields; `parse` checks the bounds, and the JSON Schema names them.
LARGEST = 2**63 - 1  # integer of torch
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

# Of a network; more is a mistake.
Size = Annotated[int, Field(ge=1, le=1 << 20)]
Length = Annotated[int, Field(ge=1, le=1 << 16)]  # of a sequence
Depth = Annotated[int, Field(ge=1, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1000)]  # per second

BOUNDS = {  # pydantic's error -> the end of its sentence
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
}

LEVELS = 100  # of lists and objects in one another
SHOWN = 80  # characters of a refused value
NAMES = {
    "boolean": ("true or false", "true or false"),
    "integer": ("an integer", "integers"),
    "number": ("a finite number", "finite numbers"),
    "string": ("a string", "strings"),
    "null": ("null", "null"),
}


def parse(kind: type[T], data: object, path: str = "") -> T:
    """Build the dataclass `kind` from parsed JSON; `path` is the place of `data` in its file.

    Fields without a default are required. An integer is accepted as a float, nothing else is converted.

    Raises ValueError with the dotted path, the value and what is allowed.
    """
    try:
        adapter: TypeAdapter[list[T]] = _adapter(kind)  # type: ignore[arg-type]  # mypy does not know classes as hashable
        return adapter.validate_json(json.dumps([data]))[0]
    except ValidationError as invalid:
        errors: list[dict[str, Any]] = [dict(error) for error in invalid.errors()]
        first = min(errors, key=lambda error: error["type"] != "unexpected_keyword_argument")
        raise ValueError(_sentence(kind, first, path)) from None


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads`, in which more is a ValueError, as any text that is wrong: values nested deeper than LEVELS, which
    would exceed the interpreter's stack, and half a character ("\\ud800"), which no file and no tokenizer takes."""
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        value = None
    else:
        brackets = ("[", "{") if isinstance(text, str) else (b"[", b"{")
        if sum(map(text.count, brackets)) <= LEVELS or _depth_within(value, LEVELS):  # type: ignore[arg-type]
            _check_characters(text, value)
            return value
    raise ValueError(f"values are nested more than {LEVELS} deep")


def _check_characters(text: str | bytes, value: Any) -> None:
    escape = "\\ud" if isinstance(text, str) else b"\\ud"
    if escape in text.lower() or (isinstance(text, str) and not text.isascii()):  # type: ignore[operator]
        for each in texts(value):
            if half := next((c for c in each if "\ud800" <= c <= "\udfff"), ""):
                raise ValueError(f"holds {half!r}, half a character; write the whole one")


def texts(value: Any) -> Iterator[str]:
    """The strings of a JSON value, with the keys of its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from texts(each)


def _depth_within(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    return levels > 0 and all(
        _depth_within(each, levels - 1) for each in (value.values() if isinstance(value, dict) else value)
    )


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass, as `parse` reads it."""
    schema = _adapter(kind).json_schema()
    return schema["$defs"].pop(kind.__name__) | {"$defs": schema["$defs"]}


def to_dict(value: Any) -> Any:
    """The JSON form of a parsed dataclass: `parse(type(value), to_dict(value)) == value`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    return value


def without(value: Any, keys: Collection[str]) -> Any:
    """A JSON value without these keys, at any depth."""
    if isinstance(value, dict):
        return {key: without(inner, keys) for key, inner in value.items() if key not in keys}
    return [without(inner, keys) for inner in value] if isinstance(value, list) else value


def difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The first of `differences`, or both values as they are."""
    return next(iter(differences(path, old, new)), (path, old, new))


def differences(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Every place under `path` where two JSON values differ, with both values. Lists of objects are compared item by
    item if they have the same length."""
    if _objects(old) and _objects(new) and len(old) == len(new):
        old, new = (dict(zip(map(str, range(len(value))), value, strict=True)) for value in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(_join(path, key), old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]
        return [found for pair in pairs for found in differences(*pair)]
    return [(path, old, new)] if old != new else []


def changes(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """`differences` without keys that one side lacks and that have no value on the other, as those that are new."""
    return [found for found in differences(path, old, new) if found[1] or found[2]]


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """A validator of a list with one `kind`, because pydantic takes no settings for a plain dataclass at the top."""
    return TypeAdapter(list[kind], config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))  # type: ignore[valid-type]


def _sentence(kind: type, error: dict[str, Any], path: str) -> str:
    """Say what is wrong, by a pydantic error and the schema of what should stand at its place."""
    schema = _adapter(kind).json_schema()
    node = parent = schema["items"]
    for key in error["loc"][1:]:
        if "oneOf" in node and key in schema["$defs"]:  # the tag of one type among several
            node = {"$ref": f"#/$defs/{key}"}
            continue
        parent, node = node, _child(schema, node, key)
        if node is None and error["type"] != "unexpected_keyword_argument":  # the tag of one type among several
            node = parent
            break
        path = f"{path}[{key}]" if isinstance(key, int) else _join(path, shown(key))
    value = shown(repr(error["input"]))
    if error["type"] == "value_error":  # a check of the dataclass itself: its message begins with the field's name
        return _join(path, str(error["ctx"]["error"]))
    if error["type"] == "unexpected_keyword_argument":
        allowed = [name for option in _options(schema, parent) for name in option.get("properties", ())]
        if (renamed := RENAMED.get(error["loc"][-1])) in allowed:
            return f"{path}: is called {renamed} now"
        close = difflib.get_close_matches(error["loc"][-1], allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{path}: unknown key (value {value}); {hint}allowed: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{path}: missing; expected {_describe(schema, node)}"
    if error["type"] in BOUNDS:
        return f"{path}: {value} {BOUNDS[error['type']].format(**error['ctx'])}"
    return f"{path or 'the configuration'}: {value} is not allowed; expected {_describe(schema, node)}"


def shown(text: str) -> str:
    """A value as a message shows it: not much of a long one."""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _options(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that a value may follow, without references."""
    return [
        schema["$defs"][option["$ref"].rsplit("/", 1)[-1]] if "$ref" in option else option
        for option in node.get("anyOf") or node.get("oneOf") or [node]
    ]


def _child(schema: dict[str, Any], node: dict[str, Any], key: str | int) -> dict[str, Any] | None:
    """The schema of an item of a list or of a key's value."""
    for option in _options(schema, node):
        inner = option.get("items") if isinstance(key, int) else option.get("properties", {}).get(key)
        inner = inner or option.get("additionalProperties")
        if isinstance(inner, dict):
            return inner
    return None


def _describe(schema: dict[str, Any], node: dict[str, Any], plural: bool = False) -> str:
    if "$ref" in node:
        (node,) = _options(schema, node)
    if "const" in node or "enum" in node:
        return " or ".join(map(repr, node.get("enum", [node.get("const")])))
    if several := node.get("anyOf") or node.get("oneOf"):
        return " or ".join(_describe(schema, option, plural) for option in several)
    if node.get("type") == "array":
        return f"{'lists' if plural else 'a list'} of {_describe(schema, node.get('items', {}), plural=True)}"
    if node.get("type") == "object":
        article = "objects" if plural else "an object"
        if "properties" in node:
            return f"{article} with keys {', '.join(node['properties'])}"
        values = node.get("additionalProperties")
        return f"{article} of {_describe(schema, values, plural=True)}" if isinstance(values, dict) else article
    return NAMES.get(node.get("type", ""), ("any JSON value", "any JSON values"))[plural]

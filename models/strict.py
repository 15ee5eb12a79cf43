"""JSON to frozen dataclasses and back, refusing whatever is unknown, missing or ill-typed."""

import dataclasses
import math
import types
import typing
from typing import Any

SHOWN = 80  # characters of a value that is refused


def parse(cls: type, data: object, path: str = "") -> Any:
    """Build the dataclass `cls` from parsed JSON.

    Fields without a default are required. Nested dataclasses, `X | None`, `tuple[X, ...]`, `dict[str, X]`,
    `Literal`, `bool`, `int`, `float` (an int is taken for a float) and `str` are understood.

    Raises ValueError with the dotted path, the value and what is allowed.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{path or 'the configuration'}: {_seen(data)} is not an object with keys")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ValueError(
                f"{_join(path, key)}: unknown key (value {_seen(data[key])}); allowed: {', '.join(fields)}"
            )
    values: dict[str, Any] = {}
    for name, field in fields.items():
        where = _join(path, name)
        if name in data:
            values[name] = _value(hints[name], data[name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: missing; expected {_describe(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:  # a check of the dataclass itself: its message begins with the field's name
        raise ValueError(_join(path, str(error))) from None


def to_dict(value: Any) -> Any:
    """The JSON form of a parsed dataclass: `parse(type(value), to_dict(value)) == value`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    return value


def difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The first of `differences`, or both as they are."""
    return next(iter(differences(path, old, new)), (path, old, new))


def differences(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Every place under `path` where two JSON values differ, and what stands there; in lists of objects too."""
    if _objects(old) and _objects(new) and len(old) == len(new):
        old, new = (dict(zip(map(str, range(len(value))), value, strict=True)) for value in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(_join(path, key), old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())]
        return [found for pair in pairs for found in differences(*pair)]
    return [(path, old, new)] if old != new else []


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _seen(value: Any) -> str:
    """A value as a message shows it: of a long one its beginning."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    if origin is dict:
        return f"an object of {_describe(args[1])}"
    if dataclasses.is_dataclass(hint):
        return f"an object with keys {', '.join(f.name for f in dataclasses.fields(hint))}"
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string", type(None): "null"}
    return names.get(hint, "any JSON value")


def _value(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        return _value(rest[0], value, path) if len(rest) == 1 else _first(rest, value, path, hint)
    if origin is typing.Literal and value in args and type(value) in {type(a) for a in args}:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _value(args[1], v, _join(path, k)) for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and type(value) in (int, float) and math.isfinite(value):  # Python's JSON knows NaN and Infinity
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise ValueError(f"{path}: {_seen(value)} is not allowed; expected {_describe(hint)}")


def _first(hints: list[Any], value: Any, path: str, union: Any) -> Any:
    for hint in hints:
        try:
            return _value(hint, value, path)
        except ValueError:
            continue
    raise ValueError(f"{path}: {_seen(value)} is not allowed; expected {_describe(union)}")

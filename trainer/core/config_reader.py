"""Read a configuration: find its file, complete it by the file that it extends, apply --set, parse it.

An unknown, missing or ill-typed key is refused with its dotted path, the value and what is allowed.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from ...models import strict
from . import credentials

T = TypeVar("T")

SHIPPED = Path(__file__).resolve().parents[2] / "configs"  # next to trainer/, in a checkout and in an installed wheel

# Keys that only one kind of run has -> the script of that kind.
SCRIPTS = {"optimizer": "launch/pretrain.py", "student": "launch/distill.py"}


def parse_file(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Parse a configuration file into a dataclass, with `key.path=value` overrides.

    Raises ValueError for anything that is not allowed, FileNotFoundError for a missing file.
    """
    data = read_config(path)
    for override in overrides:
        apply_override(data, override)
    credentials.refuse(data, str(path))
    known = {field.name for field in fields(cast(Any, kind))}
    for key, script in SCRIPTS.items():
        if key in data and key not in known:
            raise ValueError(f"{path}: {key}: this configuration is for {script}; run that, or give another --config")
    try:
        return strict.parse(kind, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_config(path: str | Path) -> Path:
    """The file of a configuration: a path, or from any folder the name of one that comes along ("2p7b",
    "configs/2p7b.json"). Raises FileNotFoundError."""
    path = Path(path)
    if path.is_file():
        return path
    shipped = SHIPPED / path.name
    if shipped.suffix != ".json":
        shipped = shipped.with_name(f"{path.name}.json")
    if path.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in SHIPPED.glob("*.json"))
    close = get_close_matches(path.stem, names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise FileNotFoundError(f"{path}: no such configuration{hint}; give a file, or one of {', '.join(names)}")


def read_config(path: str | Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The effective JSON of a configuration: its own keys, merged into those of the file that it `extends`.

    Raises ValueError for a file that extends itself, and what `find_config` and `read_json` raise.
    """
    found = find_config(path)
    file = found.resolve()
    if file in extended_by:
        circle = (*extended_by[extended_by.index(file) :], file)
        raise ValueError(f"{path}: extends: a circle, {' extends '.join(each.name for each in circle)}; break it")
    data = read_json(found)
    data.pop("$schema", None)  # for editors
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path}: extends: {base!r} is not allowed; expected the path of a configuration, from here")
    sibling = file.parent / base
    return merged(read_config(sibling if sibling.is_file() else base, (*extended_by, file)), data)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Objects are merged key by key; any other value, a list too, is replaced."""
    both = base | changes
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            both[key] = merged(base[key], changes[key])
    return both


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError with line and column for what is not JSON."""
    try:
        data = strict.parse_json(Path(path).read_text(), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except ValueError as error:  # a key twice, or not UTF-8
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must be a JSON object, not {type(data).__name__}")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys of a JSON object; of a key that stands there twice JSON would drop one value in silence."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name}: stands there {names.count(name)} times; keep one")
    return dict(pairs)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in nested dicts; the value is JSON, or else a plain string. A number leads into a list.

    Raises ValueError when the path leads through something that holds no keys.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {override}: expected key.path=value")
    try:
        value = strict.parse_json(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = path.split(".")
    node: Any = data
    for key in parents:
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            raise ValueError(f"--set {override}: {key!r} leads nowhere in {path!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ValueError(f"--set {override}: {last!r} leads nowhere in {path!r}")

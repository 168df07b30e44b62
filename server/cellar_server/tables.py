"""Tables of a configuration file as frozen dataclasses: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cellar_server.runtime.base import StartupError

T = TypeVar("T")
NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field that says what it is: where it is read, checked and documented."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def table_of(kind: type, help: str) -> Any:
    """A field of tables by name, [field."NAME"], each a `kind`. They come from the file alone."""
    return dataclasses.field(default_factory=dict, metadata={"help": help, "choices": (), "table": kind})


def kind_of(field: dataclasses.Field[Any], owner: type) -> Any:
    """The type of a field's values."""
    return get_type_hints(owner)[field.name]


def parse(kind: type[T], table: Any, where: str) -> T:
    """A table as a `kind`, a frozen dataclass. StartupError names the key, and the nearest one that there is."""
    if not isinstance(table, Mapping):
        raise StartupError(f"{where}: this is a table, not {table!r}")
    hints = get_type_hints(kind)
    refuse_unknown(table, hints, where)
    return kind(**{key: value_of(value, hints[key], f"{where}: {key}") for key, value in table.items()})


def parse_all(kind: type[T], tables: Any, where: str) -> dict[str, T]:
    """Tables by name, [where."NAME"]."""
    if not isinstance(tables, Mapping):
        raise StartupError(f'{where}: these are tables, [{where}."NAME"], not {tables!r}')
    return {name: parse(kind, table, f'[{where}."{name}"]') for name, table in tables.items()}


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """StartupError for the first key that there is not."""
    names = list(known)
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise StartupError(f"{where}: there is no option {key!r}{hint}")


def value_of(value: Any, kind: Any, where: str) -> Any:
    """A value of a file as a `kind`; StartupError where it is none. Nothing is guessed: "5" is no number."""
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in NAMES:
        if type(value) is kind:
            return value
        raise StartupError(f"{where}: {value!r} is no {NAMES[kind]}")
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise StartupError(f"{where}: {value!r} is no list of texts")
    return tuple(value)

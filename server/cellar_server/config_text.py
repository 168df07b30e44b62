"""The configuration as text: what it is now, with secrets hidden, and what each option is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellar_server.config import Config, Settings
from cellar_server.tables import NAMES, kind_of

INTRODUCTION = """\
# Configuration

Made from the declarations in `server/cellar_server/config.py` by `make config-docs`; a test proves that it is current.

An option is a key of a TOML file (`cellar-server --config FILE`, or `CELLAR_CONFIG`), a variable of the environment and
a flag: `max_sessions = 5`, `CELLAR_MAX_SESSIONS=5`, `--max-sessions 5`. Flags are the strongest, then the environment,
then the file. An unknown key ends the start, with the nearest known one in the reason. Paths are relative to the folder
in which the server is started.

    cellar-server --config cellar.toml --check-config

prints the configuration as it would be used, where each value came from, with passwords of addresses hidden; the files
that it names are read too. It ends with 0 where the server could start with it, else with 1 and the reason. The same
configuration is in the log when a server starts.
"""


def hidden(value: Any) -> Any:
    """A value as it may be shown: without the password of an address."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"(?<=://)([^:@/]*):.*@", r"\1:***@", value)  # a password may hold an @
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", value)


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml(each) for each in value)}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def entries(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, value as TOML and origin of each option, its secrets hidden; of a table its keys as `table.name.key`."""
    found = []
    for each in dataclasses.fields(Config):
        value, origin = getattr(settings.config, each.name), settings.origins.get(each.name, "default")
        if "table" not in each.metadata:
            found.append((each.name, toml(hidden(value)), origin))
            continue
        for name, row in value.items():
            found += [
                (f"{each.name}.{toml(name)}.{key}", toml(v), origin) for key, v in dataclasses.asdict(row).items()
            ]
    return found


def effective(settings: Settings) -> str:
    """Lines of TOML, each with its origin behind it."""
    return "\n".join(f"{name} = {value}  # {origin}" for name, value, origin in entries(settings))


def document() -> str:
    """docs/configuration.md."""
    lines = [INTRODUCTION, "## Options", "", "| key | default | what it is |", "|---|---|---|"]
    tables = []
    for each in dataclasses.fields(Config):
        if "table" in each.metadata:
            tables += ["", f'## [{each.name}."NAME"]', "", _sentence(each.metadata["help"]), "", *_rows(each)]
        else:
            kind = NAMES[kind_of(each, Config)]
            lines.append(_row(each.name, each.default, kind, each.metadata))
    return "\n".join([*lines, *tables, ""])


def _rows(field: dataclasses.Field[Any]) -> list[str]:
    kind = field.metadata["table"]
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for each in dataclasses.fields(kind):
        rows.append(_row(each.name, each.default, NAMES.get(kind_of(each, kind), "list of texts"), each.metadata))
    return rows


def _row(name: str, default: Any, kind: str, metadata: Mapping[str, Any]) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in metadata['choices'])}." if metadata["choices"] else ""
    text = _sentence(metadata["help"]).replace("|", "\\|").replace("<", "&lt;")
    return f"| `{name}` | `{toml(default)}` | {text}{choices} ({kind}) |"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")

"""Dialogue acts, `act(slot='value';slot=value;slot)`: their grammar and the features of a DialogueActCodec.

Shared by the exporter, which trains on the features, and the server, which makes them from a caller's text.
"""

from __future__ import annotations

import re
from collections import Counter

_ACT = re.compile(r"\s*([A-Za-z_?][\w?]*)\s*\((.*)\)\s*", re.DOTALL)
_SLOT = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:=\s*(?:'(.*?)'|\"(.*?)\"|([^;'\"][^;]*|)))?\s*(;|$)", re.DOTALL)
# Values that say something about a slot instead of filling it.
SPECIAL_VALUES = frozenset({"dontcare", "none", "yes", "no", "?", ""})
_SPELLINGS = {"dont_care": "dontcare", "true": "yes", "false": "no"}


def parse(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The act's name and its slots with their values ("" where a slot has none); ValueError with the place."""
    match = _ACT.fullmatch(text)
    if match is None:
        raise ValueError("a dialogue act reads act(slot='value';slot=value;slot)")
    act, body = match[1], match[2]
    slots: list[tuple[str, str]] = []
    at = 0
    while at < len(body):
        found = _SLOT.match(body, at)
        if found is None or found.end() == at:
            raise ValueError(f"cannot read the slots from {body[at : at + 20]!r} on")
        slots.append((found[1], (found[2] or found[3] or found[4] or "").strip()))
        at = found.end()
        if found[5] == ";" and not body[at:].strip():
            break
    return act, slots


def special(value: str) -> str | None:
    """The special value that a value is, however it is spelt; None where it fills its slot."""
    value = _SPELLINGS.get(value.lower(), value.lower())
    return value if value in SPECIAL_VALUES else None


def features(text: str, copied_slots: frozenset[str], closed_slots: frozenset[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the features of an act, and the values that placeholder tokens stand for.

    "act=inform"; "slot=name" and "slot=name#2" for filled copied slots, whose values are returned by `<name>`,
    `<name#2>`; "slot=food:dontcare" for special values and for all values of closed slots, "slot=kids#2:no" for a
    second one. ValueError for a slot that is neither copied nor closed, and for text that is no dialogue act.
    """
    act, slots = parse(text)
    names = [f"act={act}"]
    values: dict[str, str] = {}
    seen: Counter[tuple[str, bool]] = Counter()
    for slot, value in slots:
        if slot not in copied_slots and slot not in closed_slots:
            known = ", ".join(sorted(copied_slots | closed_slots))
            raise ValueError(f"slot {slot!r} is not among {known}")
        told = special(value)
        if told is None and slot in closed_slots:
            told = value.lower()
        seen[slot, told is None] += 1
        number = seen[slot, told is None]
        slot += f"#{number}" if number > 1 else ""
        if told is None:
            names.append(f"slot={slot}")
            values[f"<{slot}>"] = value
        else:
            names.append(f"slot={slot}:{told}")
    return names, values

"""docs/manifest.md is made from the proto, and names every field and value of it."""

import json
import re

from cellar_proto.v1 import manifest_pb2
from google.protobuf import json_format

from benchmarks import manifest_page

PAGE = manifest_page.PAGE.read_text()


def sections() -> dict[str, set[str]]:
    """By message or enum: the names that its table has."""
    parts = re.split(r"^## (\w+)$", PAGE, flags=re.MULTILINE)[1:]
    return {
        name: set(re.findall(r"^\| `(\w+)`", body, re.MULTILINE))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_the_page_is_up_to_date():
    assert manifest_page.page() == PAGE, "run `python -m benchmarks.manifest_page`"


def test_every_field_and_value_is_there():
    wanted = {
        name: {field.name for field in message.fields}
        for name, message in manifest_pb2.DESCRIPTOR.message_types_by_name.items()
    } | {
        name: {value.name for value in enum.values if value.number}
        for name, enum in manifest_pb2.DESCRIPTOR.enum_types_by_name.items()
    }
    assert sections() == wanted


def test_no_field_is_without_a_word():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*) \|$", PAGE, re.MULTILINE)
    assert rows
    for name, dtype, text in rows:
        assert text or "](#" in dtype, name


def test_the_example_is_a_manifest():
    manifest = json_format.ParseDict(
        json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]), manifest_pb2.Manifest()
    )
    assert sum(part.shape[0] for part in manifest.parts) == manifest.state_size

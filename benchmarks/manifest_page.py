"""`python -m benchmarks.manifest_page` writes docs/manifest.md from the comments of manifest.proto."""

from __future__ import annotations

import re

from benchmarks.serving import ROOT

PROTO = ROOT / "proto" / "cellar_proto" / "v1" / "manifest.proto"
PAGE = ROOT / "docs" / "manifest.md"
INTRO = """# The manifest

`<models>/<name>/<version>/manifest.json` says what a model is: the message `Manifest` in protobuf's JSON form, with the
field names below. A server reads nothing else about a model, and refuses a folder whose files are not what it says. An
unknown field is an error; a field that is left out is 0, empty or absent. `cellar_models.export`, `cellar-models
export` and `cellar-models import-onnx` write it, `cellar-models validate` proves it; by hand it looks like this:

```json
{
 "format": 1,
 "name": "pump",
 "version": 1,
 "description": "The next pressure of a pump, after every reading.",
 "mode": "MANY_TO_MANY_ALIGNED",
 "step": {"file": "model.onnx", "input": "x", "state_input": "state", "output": "y", "state_output": "next_state"},
 "state_size": 32,
 "parts": [{"name": "lstm.h", "offset": 0, "shape": [16]}, {"name": "lstm.c", "offset": 16, "shape": [16]}],
 "input": {"dtype": "FLOAT32", "shape": [2], "names": ["pressure", "valve"]},
 "output": {"dtype": "FLOAT32", "shape": [1]},
 "position_unit": "ROWS",
 "sha256": {"model.onnx": "<64 hexadecimal digits>"}
}
```

The graph is a pure function, batch first, batch and time open:
`(x [batch, time, ...], state float32 [batch, S]) -> (y float32 [batch, time, ...], next state float32 [batch, S])`.

This page is made from `proto/cellar_proto/v1/manifest.proto` by `python -m benchmarks.manifest_page`.
"""
_BLOCK = re.compile(r"((?:^// [^\n]*\n)+)^(message|enum) (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"((?:^ +// [^\n]*\n)*)^ +(?:(repeated |optional )?([\w<>, .]+?) )?(\w+) = (\d+);", re.MULTILINE)


def _text(comment: str) -> str:
    lines = [line.strip().removeprefix("//").strip() for line in comment.strip().splitlines()]
    return " ".join(lines).replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    """The page as it should be."""
    blocks = {match[3]: match for match in _BLOCK.finditer(PROTO.read_text())}
    # the manifest first, then what it is made of, in the proto's order
    names = ["Manifest", *(name for name in blocks if name != "Manifest")]
    made = [INTRO]
    for name in names:
        comment, kind, _, body = blocks[name].groups()
        made.append(f"## {name}\n\n{_text(comment)}\n")
        rows, last = [], ""
        for field in _FIELD.finditer(body):
            what, repeated, dtype, field_name, number = field.groups()
            if kind == "message":
                many = "list of " if (repeated or "").strip() == "repeated" else ""
                shown = f"[{dtype}](#{dtype.lower()})" if dtype in blocks else _text(dtype)
                # fields under one comment share it; what stands in its own section below needs none
                last = last if not what and dtype not in blocks else _text(what)
                rows.append(f"| `{field_name}` | {many}{shown} | {last} |")
            elif number != "0":
                rows.append(f"| `{field_name}` | {_text(what)} |")
        head = "| field | type | |\n|---|---|---|" if kind == "message" else "| value | |\n|---|---|"
        made.append("\n".join([head, *rows, ""]))
    return "\n".join(made)


if __name__ == "__main__":
    PAGE.write_text(page())

"""Build hook: generates the protobuf and gRPC stubs, so that they are never committed and never stale.

Files under oip/ become one descriptor set instead: their messages must not be in protobuf's default pool.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def generate() -> None:
    """Writes *_pb2.py, *_pb2.pyi and *_pb2_grpc.py beside each .proto file, and the descriptor set; RuntimeError where
    protoc refuses."""
    from importlib.resources import files

    from grpc_tools import protoc

    found = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    sources = [path for path in found if "/oip/" not in path]
    include = ROOT / "proto"
    builtin = str(files("grpc_tools") / "_proto")
    for flags, chosen in (
        ([f"--python_out={include}", f"--pyi_out={include}"], sources),
        ([f"--grpc_python_out={include}"], [s for s in sources if "service " in (include / s).read_text()]),
        (
            [f"--descriptor_set_out={include / 'cellar_proto/oip/open_inference.binpb'}"],
            [path for path in found if "/oip/" in path],
        ),
    ):
        if protoc.main(["protoc", f"-I{include}", f"-I{builtin}", *flags, *chosen]):
            raise RuntimeError("protoc refused the .proto files")


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before each wheel or editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate()


if __name__ == "__main__":
    sys.exit(generate())

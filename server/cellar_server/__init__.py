"""Serves trained recurrent networks over gRPC and keeps their hidden state between requests."""

import os
from importlib.metadata import version

# before anything imports ONNX Runtime, which asks but once: it would write down what it runs and send it to its maker
# (docs/decisions/0097)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# gRPC reads it when it is imported. By its newer way to the sockets of a server, the thread that waits for events hands
# what is to be read and written to threads of a pool; by the older it does that itself (docs/decisions/0104). The
# variable goes again, for the processes that are started from this one.
if "GRPC_EXPERIMENTS" not in os.environ:
    os.environ["GRPC_EXPERIMENTS"] = "-event_engine_listener"
    import grpc  # noqa: F401

    del os.environ["GRPC_EXPERIMENTS"]

__version__ = version("cellar-serving")

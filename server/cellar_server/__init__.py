"""Serves trained recurrent networks over gRPC and keeps their hidden state between requests."""

import os
from importlib.metadata import version

# before anything imports ONNX Runtime, which asks but once: it would write down what it runs and send it to its maker
# (docs/decisions/0097)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = version("cellar-serving")

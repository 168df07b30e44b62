"""Serves trained recurrent networks over gRPC and keeps their hidden state between requests."""

from importlib.metadata import version

__version__ = version("cellar-serving")

"""Protobuf package `cellar.v1`."""

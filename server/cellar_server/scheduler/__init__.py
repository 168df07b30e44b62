"""Rows of work and the runs made of them. Knows no gRPC and no session."""

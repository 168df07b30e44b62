"""gRPC: what comes over the wire goes to an engine, what an engine delivers goes back."""

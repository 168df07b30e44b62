"""The contract of Cellar: protobuf messages and gRPC stubs, generated at build from the .proto files beside them."""

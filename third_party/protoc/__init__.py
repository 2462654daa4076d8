"""protoc, from grpcio-tools, behind one rule. BUILD files of protos use it."""

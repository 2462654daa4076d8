"""Other people's work, locked: Python packages, protoc, and what Bazel 4 needs."""

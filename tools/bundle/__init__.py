"""The first-party code as one archive, for hosts without Bazel."""

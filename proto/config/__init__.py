"""Loads, merges, checks and compares job files. No torch, no ray: `validate` answers in under two seconds."""

from finecut.proto.config.compare import diff
from finecut.proto.config.errors import ConfigError, Problem, UserError
from finecut.proto.config.graph import waves
from finecut.proto.config.load import (
    load_job,
    load_manifest,
    load_message,
    load_resolved,
    load_submission,
    resolve,
)

__all__ = [
    "ConfigError",
    "Problem",
    "UserError",
    "diff",
    "load_job",
    "load_manifest",
    "load_message",
    "load_resolved",
    "load_submission",
    "resolve",
    "waves",
]

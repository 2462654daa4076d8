"""What the policy talks to in a multi-turn rollout: user code, named in the job by its import path."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from finecut.proto.config import UserError


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the environment says to an answer."""

    # Chat messages, such as {"role": "user", "content": "Too high."}. Empty when it is done.
    messages: Sequence[Mapping[str, Any]] = ()
    # Whether the conversation ends here.
    is_done: bool = False


class Environment(Protocol):
    """The counterpart of one conversation. Each sample gets one of its own."""

    def reply(self, answer: str) -> Reply:
        """Answers the policy's turn, given as text without special tokens. May keep state; runs in a thread."""


class EnvironmentFactory(Protocol):
    """What rollout.multi_turn.environment names: a class, or a function, that makes an environment for a record."""

    def __call__(self, record: Mapping[str, Any]) -> Environment:
        """`record`: the prompt's record, with the fields that data preparation kept."""


def load(path: str) -> EnvironmentFactory:
    """Imports "package.module:name". Raises UserError when there is no such thing."""
    field = "rollout.multi_turn.environment"
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"{field}: {path!r} must have the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code runs here, and may raise anything
        raise UserError(f"{field}: {path!r}: importing {module_name} failed: {_told(error)}") from error
    if not callable(factory := getattr(module, name, None)):
        raise UserError(f"{field}: {path!r}: {module_name} has no class or function {name!r}")
    return factory


def make(factory: EnvironmentFactory, record_id: str, record: Mapping[str, Any]) -> Environment:
    """The environment of one sample. Raises UserError where user code fails."""
    try:
        environment = factory(record)
    except Exception as error:
        raise UserError(f"the environment cannot be made for record {record_id}: {_told(error)}") from error
    if not callable(getattr(environment, "reply", None)):
        raise UserError(f"the environment for record {record_id} has no method reply(answer)")
    return environment


def ask(environment: Environment, record_id: str, answer: str) -> Reply:
    """Its reply. Raises UserError where user code fails or returns something else."""
    try:
        reply = environment.reply(answer)
    except Exception as error:
        raise UserError(f"the environment failed on record {record_id}: {_told(error)}") from error
    if not isinstance(reply, Reply):
        raise UserError(f"the environment returned {type(reply).__name__} for record {record_id}; it must be a Reply")
    if not reply.is_done and not reply.messages:
        raise UserError(f"the environment said nothing for record {record_id} and is not done; return a message")
    return reply


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

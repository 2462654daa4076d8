"""Prompts for rollouts: where the model is asked, what its answer is judged by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finecut.dataprep.config import PromptConfig
from finecut.dataprep.conversations import check_turns
from finecut.dataprep.messages import TOOL, USER, Message, check_text, kind
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.schemas import missing, read_openai, read_tools


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where the model answers, and what that answer is judged by."""

    source: str
    place: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    reference: str | None = None
    verifier: str | None = None


def parse(record: Record, config: PromptConfig) -> Prompt:
    """Raises RecordError."""
    content = record.content
    if not isinstance(content, dict):
        raise RecordError(f"a {kind(content)} where an object with the field {config.prompt_field!r} is expected")
    try:
        messages = read_prompt(content, config.prompt_field)
        check_ends_with_question(messages, config.prompt_field)
        tools = read_tools(content)
    except RecursionError as error:
        raise RecordError("JSON that is nested too deeply") from error
    reference = _reference(content, config.reference_field) if config.reference_field else None
    verifier = _filled(content, config.verifier_field) if config.verifier_field else None
    return Prompt(record.source, record.place, tuple(messages), tools, reference, verifier)


def read_prompt(content: Mapping[str, Any], field: str) -> list[Message]:
    """Text, which is the user's, or messages in OpenAI's layout. Raises RecordError."""
    if isinstance(content.get(field), str):
        return [Message(USER, _filled(content, field))]
    return read_openai(content, field)


def check_ends_with_question(messages: Sequence[Message], field: str) -> None:
    """Raises RecordError where turns are out of order, or the model is not asked at the end."""
    check_turns(messages, field)
    if messages[-1].role not in (USER, TOOL):
        raise RecordError(
            f"{field}: the last message is the {messages[-1].role}'s; a prompt ends with the user's or a tool's"
        )


def _reference(content: Mapping[str, Any], field: str) -> str:
    """Text, or a number as JSON writes it: sets of arithmetic problems give either."""
    value = content.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return _filled(content, field)


def _filled(content: Mapping[str, Any], field: str) -> str:
    if field not in content:
        raise missing(content, field)
    text = check_text(content[field], field)
    if not text.strip():
        raise RecordError(f"{field}: the text is empty")
    return text

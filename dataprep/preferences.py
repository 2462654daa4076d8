"""Preference pairs: a prompt, the answer that is preferred and the one that is not.

    prompt and answers      {"prompt": text or messages, "chosen": text or message(s), "rejected": ...}
    whole conversations     {"chosen": [messages], "rejected": [messages]}; the prompt is all but the last message,
                            beside it the prompt may stand once more

Each pair becomes two conversations of one prompt, in which only the answer is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finecut.dataprep.config import PreferenceConfig
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.messages import ASSISTANT, Message, check_text, kind
from finecut.dataprep.prompts import check_ends_with_question, read_prompt
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.schemas import missing, read_openai, read_tools


@dataclass(frozen=True)
class Preference:
    """Two answers of the assistant to one prompt; they differ, and neither is empty."""

    source: str
    place: str
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    tools: tuple[dict[str, Any], ...] = ()
    margin: float | None = None

    def conversations(self) -> tuple[Conversation, Conversation]:
        """The prompt with each answer; what the assistant says in the prompt is not trained."""
        prompt = tuple(replace(message, trained=False) for message in self.prompt)
        chosen, rejected = (
            Conversation(self.source, self.place, (*prompt, answer), self.tools)
            for answer in (self.chosen, self.rejected)
        )
        return chosen, rejected


def parse(record: Record, config: PreferenceConfig) -> Preference:
    """Raises RecordError."""
    content = record.content
    if not isinstance(content, dict):
        fields = f"{config.chosen_field!r} and {config.rejected_field!r}"
        raise RecordError(f"a {kind(content)} where an object with the fields {fields} is expected")
    try:
        chosen_prompt, chosen = _answer(content, config.chosen_field)
        rejected_prompt, rejected = _answer(content, config.rejected_field)
        prompt = _prompt(content, config, chosen_prompt, rejected_prompt)
        tools = read_tools(content)
    except RecursionError as error:
        raise RecordError("JSON that is nested too deeply") from error
    if (chosen.content, chosen.tool_calls) == (rejected.content, rejected.tool_calls):
        raise RecordError(f"{config.chosen_field} and {config.rejected_field} are equal, so neither is preferred")
    margin = _margin(content, config.margin_field) if config.margin_field else None
    return Preference(record.source, record.place, tuple(prompt), chosen, rejected, tools, margin)


def _answer(content: Mapping[str, Any], field: str) -> tuple[list[Message], Message]:
    """The messages before the answer, where the field holds them, and the answer."""
    if field not in content:
        raise missing(content, field)
    value = content[field]
    if isinstance(value, str):
        if not check_text(value, field).strip():
            raise RecordError(f"{field}: the answer is empty")
        return [], Message(ASSISTANT, value)
    *before, answer = read_openai({field: [value]} if isinstance(value, dict) else content, field)
    if answer.role != ASSISTANT:
        raise RecordError(f"{field}: the last message is the {answer.role}'s; an answer is the assistant's")
    if not answer.trained:
        raise RecordError(f"{field}: the answer has weight 0, and both answers are always compared; remove the weight")
    return before, answer


def _prompt(
    content: Mapping[str, Any], config: PreferenceConfig, before_chosen: list[Message], before_rejected: list[Message]
) -> list[Message]:
    """The prompt, wherever it stands; where it stands several times it must be the same."""
    if _said(before_chosen) != _said(before_rejected):
        raise RecordError(
            f"{config.chosen_field} and {config.rejected_field} answer different prompts: their messages before the "
            "last differ; only the answer may"
        )
    field, stated = config.prompt_field, content.get(config.prompt_field)
    if stated is None and not before_chosen:
        raise missing(content, field)
    if stated is None:
        check_ends_with_question(before_chosen, config.chosen_field)
        return before_chosen
    prompt = read_prompt(content, field)
    # As text, the prompt is the last message; a system message or earlier turns may stand before it.
    compared = before_chosen[-1:] if isinstance(stated, str) else before_chosen
    if before_chosen and _said(compared) != _said(prompt):
        raise RecordError(f"{config.chosen_field}: its messages before the answer are not those of {field}")
    check_ends_with_question(before_chosen or prompt, config.chosen_field if before_chosen else field)
    return before_chosen or prompt


def _said(messages: Sequence[Message]) -> list[Message]:
    """Weights aside: nothing of the prompt is trained."""
    return [replace(message, trained=True) for message in messages]


def _margin(content: Mapping[str, Any], field: str) -> float:
    if field not in content:
        raise missing(content, field)
    value = content[field]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"{field}: a {kind(value)} where a number is expected")
    # The largest number that a shard's 32 bits hold.
    if not 0 <= value < 2.0**127:
        raise RecordError(
            f"{field}: {value!r:.40} is no margin; it is 0 or more, and the chosen answer is the better one"
        )
    return float(value)

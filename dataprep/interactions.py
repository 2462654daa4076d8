"""From a member's events to a conversation: what went before is the question, the last event is the answer."""

from typing import Any

from finecut.dataprep import sandbox
from finecut.dataprep.config import InteractionConfig
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.messages import ASSISTANT, USER, Message, check_text, kind
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.schemas import missing


class InteractionParser:
    """Fills in the templates of one source. Raises UserError where they are not templates."""

    def __init__(self, config: InteractionConfig):
        self._config = config
        self._prompt = sandbox.template(config.prompt_template, "interaction.prompt_template")
        self._answer = sandbox.template(config.answer_template, "interaction.answer_template")

    def parse(self, record: Record) -> Conversation:
        """Events are taken in the order given; only the most recent `max_events` are seen. Raises RecordError."""
        *history, last = self._events(record.content)
        variables = {**record.content, self._config.events_field: history, "events": history}
        question = self._prompt(variables)
        answer = self._answer({**variables, "event": last})
        messages = (
            Message(USER, _checked(question, "prompt_template")),
            Message(ASSISTANT, _checked(answer, "answer_template")),
        )
        return Conversation(record.source, record.place, messages)

    def _events(self, content: Any) -> list[Any]:
        field = self._config.events_field
        if not isinstance(content, dict):
            raise RecordError(f"a {kind(content)} where an object with the field {field!r} is expected")
        if field not in content:
            raise missing(content, field)
        events = content[field]
        if not isinstance(events, list):
            raise RecordError(f"{field}: a {kind(events)} where a list of events is expected")
        if len(events) < self._config.min_events:
            raise RecordError(f"{field}: {len(events)} events; a record needs {self._config.min_events}")
        return events[-self._config.max_events :]


def _checked(text: str, template: str) -> str:
    if not check_text(text, f"interaction.{template}").strip():
        raise RecordError(f"interaction.{template}: gives an empty message")
    return text

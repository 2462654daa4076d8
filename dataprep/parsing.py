"""From a record to what is trained on, by the kind of record that its source declares."""

from collections.abc import Sequence

from finecut.dataprep import conversations
from finecut.dataprep.config import RecordConfig, SourceConfig
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.records import Record
from finecut.proto.config import UserError


def parse(record: Record, config: RecordConfig) -> Conversation:
    """Raises RecordError."""
    return conversations.parse(record, config.messages_field, config.system_prompt, config.schema)


def check_columns(source: SourceConfig, place: str, names: Sequence[str]) -> list[str]:
    """Of the columns that a table has, those to read. Raises UserError where one that is needed is missing."""
    required, optional = _fields(source.record)
    for name in required:
        if name not in names:
            raise UserError(
                f"sources {source.name!r}: {place} has no column {name!r}, only {', '.join(names)}; "
                "set the record's fields, such as conversation.messages_field"
            )
    return [name for name in names if name in required or name in optional]


def _fields(config: RecordConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields of a record that are needed, and those that are read where there are any."""
    if config.schema == "ALPACA":
        return ("instruction", "output"), ("input", "system", "history")
    return (config.messages_field,), ("system", "tools")

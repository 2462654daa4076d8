"""From a record to what is trained on, by the kind of record that its source declares."""

from finecut.dataprep import conversations
from finecut.dataprep.config import RecordConfig
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.records import Record


def parse(record: Record, config: RecordConfig) -> Conversation:
    """Raises RecordError."""
    return conversations.parse(record, config.messages_field, config.system_prompt, config.schema)


def columns(config: RecordConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields of a record that are needed, and those that are read where there are any."""
    if config.schema == "ALPACA":
        return ("instruction", "output"), ("input", "system", "history")
    return (config.messages_field,), ("system", "tools")

"""From a record to what is trained on, by the kind of record that its source declares."""

from collections.abc import Callable, Sequence

from finecut.dataprep import conversations, event_sequences, preferences, prompts, texts
from finecut.dataprep.config import (
    ConversationConfig,
    EventSequenceConfig,
    InteractionConfig,
    PreferenceConfig,
    PromptConfig,
    RecordConfig,
    SourceConfig,
    TextConfig,
)
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.event_sequences import EventSequence
from finecut.dataprep.interactions import InteractionParser
from finecut.dataprep.preferences import Preference
from finecut.dataprep.prompts import Prompt
from finecut.dataprep.records import Record
from finecut.dataprep.texts import Text
from finecut.proto.config import UserError

Sample = Conversation | Text | Preference | Prompt | EventSequence
Parser = Callable[[Record], Sample]  # raises RecordError


def parser_of(config: RecordConfig) -> Parser:
    """The function that reads one source's records. Raises UserError where the config's templates are wrong."""
    match config:
        case TextConfig():
            return lambda record: texts.parse(record, config.text_field)
        case InteractionConfig():
            return InteractionParser(config).parse
        case PreferenceConfig():
            return lambda record: preferences.parse(record, config)
        case PromptConfig():
            return lambda record: prompts.parse(record, config)
        case EventSequenceConfig():
            return lambda record: event_sequences.parse(record, config)
        case ConversationConfig():
            return lambda record: conversations.parse(
                record, config.messages_field, config.system_prompt, config.schema
            )


def check_columns(source: SourceConfig, place: str, names: Sequence[str]) -> list[str]:
    """Of the columns that a table has, those to read. Raises UserError where one that is needed is missing."""
    required, optional = _fields(source.record)
    for name in required:
        if name not in names:
            raise UserError(
                f"sources {source.name!r}: {place} has no column {name!r}, only {', '.join(names)}; "
                "set the record's fields, such as conversation.messages_field"
            )
    if source.read_all_fields or isinstance(source.record, InteractionConfig):
        return list(names)
    return [name for name in names if name in required or name in optional]


def _fields(config: RecordConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields of a record that are needed, and those that are read where there are any."""
    match config:
        case TextConfig():
            return (config.text_field,), ()
        case InteractionConfig():
            return (config.events_field,), ()
        case PreferenceConfig():
            margin = (config.margin_field,) if config.margin_field else ()
            return (config.chosen_field, config.rejected_field, *margin), (config.prompt_field, "tools")
        case PromptConfig():
            judged_by = (field for field in (config.reference_field, config.verifier_field) if field)
            return (config.prompt_field, *judged_by), ("tools",)
        case EventSequenceConfig():
            return (config.ids_field,), ()
        case ConversationConfig(schema="ALPACA"):
            return ("instruction", "output"), ("input", "system", "history")
        case ConversationConfig():
            return (config.messages_field,), ("system", "tools")

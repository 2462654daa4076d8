"""What the steps of data preparation are told: frozen, and free of protobuf."""

import enum
from dataclasses import dataclass
from pathlib import Path

from finecut.proto import artifact_pb2, data_pb2


@dataclass(frozen=True)
class ConversationConfig:
    """A record is a conversation. ALPACA has no messages field."""

    schema: str = "OPENAI"  # or "SHAREGPT", "ALPACA"
    messages_field: str = "messages"
    system_prompt: str | None = None


@dataclass(frozen=True)
class TextConfig:
    """A record is plain text."""

    text_field: str = "text"


@dataclass(frozen=True)
class InteractionConfig:
    """A record is one member's events. The fields are those of finecut.v1.InteractionRecord."""

    prompt_template: str
    answer_template: str
    events_field: str = "events"
    min_events: int = 2
    max_events: int = 100


@dataclass(frozen=True)
class PreferenceConfig:
    """A record is a prompt with two answers. The fields are those of finecut.v1.PreferenceRecord."""

    prompt_field: str = "prompt"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    margin_field: str | None = None


@dataclass(frozen=True)
class PromptConfig:
    """A record is a prompt for rollouts. The fields are those of finecut.v1.PromptRecord."""

    prompt_field: str = "prompt"
    reference_field: str | None = None
    verifier_field: str | None = None


@dataclass(frozen=True)
class EventSequenceConfig:
    """A record is a sequence of ids from 0 to `semantic_id_count` - 1."""

    semantic_id_count: int
    ids_field: str = "ids"


RecordConfig = (
    ConversationConfig | TextConfig | InteractionConfig | PreferenceConfig | PromptConfig | EventSequenceConfig
)


class Kind(enum.Enum):
    """What a stage's records become; a stage has one kind."""

    DOCUMENTS = artifact_pb2.DataArtifact.DOCUMENTS
    PAIRS = artifact_pb2.DataArtifact.PAIRS
    PROMPTS = artifact_pb2.DataArtifact.PROMPTS

    @classmethod
    def of(cls, record: RecordConfig) -> "Kind":
        return {PreferenceConfig: cls.PAIRS, PromptConfig: cls.PROMPTS}.get(type(record), cls.DOCUMENTS)


@dataclass(frozen=True)
class ReaderConfig:
    """A reader of the user's: "package.module:name", its options, and the folders that it is imported from."""

    path: str
    options: tuple[tuple[str, str], ...] = ()
    code_paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceConfig:
    """Where one source's records are and how they look."""

    name: str
    paths: tuple[str, ...]
    format: str | None = None  # a name of FileFormat; None: by each file's ending
    record: RecordConfig = ConversationConfig()
    read_all_fields: bool = False  # also those that only a filter looks at
    mixing: tuple[str, float] | None = None  # "weight", "epochs" or "token_budget" and its value; None: once an epoch
    reader: ReaderConfig | None = None  # None: by format

    @classmethod
    def from_proto(
        cls, source: data_pb2.DataSource, read_all_fields: bool = False, code_paths: tuple[str, ...] = ()
    ) -> "SourceConfig":
        reader = ReaderConfig(source.reader.path, tuple(sorted(source.reader.options.items())), code_paths)
        return cls(
            name=source.name or Path(source.paths[0]).name,
            paths=tuple(source.paths),
            format=data_pb2.FileFormat.Name(source.format) if source.format else None,
            record=_record(source),
            read_all_fields=read_all_fields,
            mixing=(mixing, getattr(source, mixing)) if (mixing := source.WhichOneof("mixing")) else None,
            reader=reader if source.HasField("reader") else None,
        )


def _record(source: data_pb2.DataSource) -> RecordConfig:
    kind = source.WhichOneof("record")
    if kind == "text":
        return TextConfig(source.text.text_field)
    if kind == "interaction":
        return InteractionConfig(
            prompt_template=source.interaction.prompt_template,
            answer_template=source.interaction.answer_template,
            events_field=source.interaction.events_field,
            min_events=source.interaction.min_events,
            max_events=source.interaction.max_events,
        )
    if kind == "preference":
        preference = source.preference
        return PreferenceConfig(
            prompt_field=preference.prompt_field,
            chosen_field=preference.chosen_field,
            rejected_field=preference.rejected_field,
            margin_field=preference.margin_field or None,
        )
    if kind == "prompt":
        prompt = source.prompt
        return PromptConfig(prompt.prompt_field, prompt.reference_field or None, prompt.verifier_field or None)
    if kind == "event_sequence":
        return EventSequenceConfig(source.event_sequence.semantic_id_count, source.event_sequence.ids_field)
    assert kind == "conversation", kind
    return ConversationConfig(
        schema=data_pb2.ConversationRecord.Schema.Name(source.conversation.schema),
        messages_field=source.conversation.messages_field,
        system_prompt=source.conversation.system_prompt or None,
    )


@dataclass(frozen=True)
class FilterConfig:
    """Conditions on a record. The fields are those of finecut.v1.Filter."""

    expression: str | None = None
    language_field: str | None = None
    languages: tuple[str, ...] = ()
    min_tokens: int = 1
    max_tokens: int | None = None
    remove_duplicates: bool = False
    near_similarity: float | None = None

    @classmethod
    def from_proto(cls, config: data_pb2.Filter) -> "FilterConfig":
        return cls(
            expression=config.expression or None,
            language_field=config.language_field or None,
            languages=tuple(config.languages),
            min_tokens=config.min_tokens,
            max_tokens=config.max_tokens if config.HasField("max_tokens") else None,
            remove_duplicates=config.HasField("deduplication") and config.deduplication.exact,
            near_similarity=(
                config.deduplication.near_similarity if config.deduplication.HasField("near_similarity") else None
            ),
        )

    @property
    def reads_fields(self) -> bool:
        return bool(self.expression or self.language_field)


class LongDocuments(enum.Enum):
    """What happens to a document longer than a block."""

    REJECT = data_pb2.Packing.REJECT
    TRUNCATE = data_pb2.Packing.TRUNCATE
    SPLIT = data_pb2.Packing.SPLIT


@dataclass(frozen=True)
class PackingConfig:
    """How documents become blocks of `block_size` tokens."""

    block_size: int
    window_documents: int
    one_document_a_block: bool = False
    on_the_fly: bool = False  # the shards keep documents and the trainer packs
    long_documents: LongDocuments = LongDocuments.REJECT


@dataclass(frozen=True)
class PrepareConfig:
    """One data_prep stage. The fields are those of finecut.v1.DataPrep, which says what they mean."""

    sources: tuple[SourceConfig, ...]
    tokenizer: str
    packing: PackingConfig
    filter: FilterConfig = FilterConfig()
    chat_template_file: str | None = None
    added_tokens: tuple[str, ...] = ()
    last_turn_only: bool = False
    evaluation_fraction: float = 0.0
    max_evaluation_documents: int | None = None
    max_bad_records: int = 0
    max_truncated_fraction: float = 0.0
    max_shard_bytes: int = 256 << 20
    seed: int = 0

    @property
    def kind(self) -> Kind:
        """Validation has seen to it that all sources agree."""
        return Kind.of(self.sources[0].record)

    @property
    def semantic_id_count(self) -> int:
        """Ids after the text vocabulary; all sources that have some agree on their number. 0: none."""
        counts = [s.record.semantic_id_count for s in self.sources if isinstance(s.record, EventSequenceConfig)]
        return max(counts, default=0)

    @property
    def needs_chat_template(self) -> bool:
        """Texts and sequences of ids have no turns."""
        return not all(isinstance(source.record, TextConfig | EventSequenceConfig) for source in self.sources)

    @classmethod
    def from_proto(cls, stage: data_pb2.DataPrep, code_paths: tuple[str, ...] = ()) -> "PrepareConfig":
        """`stage` is resolved: every default is written out. `code_paths`: where readers of the user's are."""
        evaluation = stage.evaluation
        filter = FilterConfig.from_proto(stage.filter) if stage.HasField("filter") else FilterConfig()
        return cls(
            sources=tuple(SourceConfig.from_proto(source, filter.reads_fields, code_paths) for source in stage.sources),
            filter=filter,
            tokenizer=stage.tokenization.tokenizer,
            chat_template_file=stage.tokenization.chat_template_file or None,
            added_tokens=tuple(stage.tokenization.added_tokens),
            last_turn_only=stage.loss_mask.turns == data_pb2.LossMask.LAST_ASSISTANT_TURN,
            packing=PackingConfig(
                block_size=stage.packing.block_size,
                window_documents=stage.packing.window_documents,
                one_document_a_block=stage.packing.mode == data_pb2.Packing.NONE,
                on_the_fly=stage.packing.mode == data_pb2.Packing.ON_THE_FLY,
                long_documents=LongDocuments(stage.packing.long_documents),
            ),
            evaluation_fraction=evaluation.fraction,
            max_evaluation_documents=evaluation.max_documents if evaluation.HasField("max_documents") else None,
            max_bad_records=stage.error_budget.max_records,
            max_truncated_fraction=stage.error_budget.max_truncated_fraction,
            max_shard_bytes=stage.shards.max_bytes,
            seed=stage.seed,
        )

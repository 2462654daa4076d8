"""What the steps of data preparation are told: frozen, and free of protobuf."""

from dataclasses import dataclass
from pathlib import Path

from finecut.proto import data_pb2


@dataclass(frozen=True)
class ConversationConfig:
    """A record is a conversation. ALPACA has no messages field."""

    schema: str = "OPENAI"  # or "SHAREGPT", "ALPACA"
    messages_field: str = "messages"
    system_prompt: str | None = None


RecordConfig = ConversationConfig


@dataclass(frozen=True)
class SourceConfig:
    """Where one source's records are and how they look."""

    name: str
    paths: tuple[str, ...]
    format: str | None = None  # a name of FileFormat; None: by each file's ending
    record: RecordConfig = ConversationConfig()

    @classmethod
    def from_proto(cls, source: data_pb2.DataSource) -> "SourceConfig":
        return cls(
            name=source.name or Path(source.paths[0]).name,
            paths=tuple(source.paths),
            format=data_pb2.FileFormat.Name(source.format) if source.format else None,
            record=_record(source),
        )


def _record(source: data_pb2.DataSource) -> RecordConfig:
    conversation = source.conversation
    return ConversationConfig(
        schema=data_pb2.ConversationRecord.Schema.Name(conversation.schema),
        messages_field=conversation.messages_field,
        system_prompt=conversation.system_prompt or None,
    )


@dataclass(frozen=True)
class PackingConfig:
    """How documents become blocks of `block_size` tokens."""

    block_size: int
    window_documents: int
    one_document_a_block: bool = False
    truncate_long: bool = False  # False: a document longer than a block is a bad record


@dataclass(frozen=True)
class PrepareConfig:
    """One data_prep stage. The fields are those of finecut.v1.DataPrep, which says what they mean."""

    sources: tuple[SourceConfig, ...]
    tokenizer: str
    packing: PackingConfig
    chat_template_file: str | None = None
    last_turn_only: bool = False
    evaluation_fraction: float = 0.0
    max_evaluation_documents: int | None = None
    max_bad_records: int = 0
    max_truncated_fraction: float = 0.0
    max_shard_bytes: int = 256 << 20
    seed: int = 0

    @classmethod
    def from_proto(cls, stage: data_pb2.DataPrep) -> "PrepareConfig":
        """`stage` is resolved: every default is written out."""
        evaluation = stage.evaluation
        return cls(
            sources=tuple(SourceConfig.from_proto(source) for source in stage.sources),
            tokenizer=stage.tokenization.tokenizer,
            chat_template_file=stage.tokenization.chat_template_file or None,
            last_turn_only=stage.loss_mask.turns == data_pb2.LossMask.LAST_ASSISTANT_TURN,
            packing=PackingConfig(
                block_size=stage.packing.block_size,
                window_documents=stage.packing.window_documents,
                one_document_a_block=stage.packing.mode == data_pb2.Packing.NONE,
                truncate_long=stage.packing.long_documents == data_pb2.Packing.TRUNCATE,
            ),
            evaluation_fraction=evaluation.fraction,
            max_evaluation_documents=evaluation.max_documents if evaluation.HasField("max_documents") else None,
            max_bad_records=stage.error_budget.max_records,
            max_truncated_fraction=stage.error_budget.max_truncated_fraction,
            max_shard_bytes=stage.shards.max_bytes,
            seed=stage.seed,
        )

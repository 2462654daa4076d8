"""What a plan finds of a stage's model and data before anything has run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from finecut.proto import job_pb2, model_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.artifacts import ArtifactError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.source import locate_model

_PROMPT_TOKENS = 256  # of a prompt, where nothing is known of them yet


@dataclasses.dataclass(frozen=True)
class Data:
    """What is known of prepared data. None: nothing yet.

    Attributes:
      block_size: Tokens of a block; 0: not known.
      document_tokens: Mean tokens of a document.
      trained_share: Share of tokens that are in the loss.
    """

    block_size: int
    num_blocks: int | None = None
    num_documents: int | None = None
    document_tokens: int | None = None
    trained_share: float | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt, where documents are prompts."""
        return self.document_tokens or _PROMPT_TOKENS


def decoder_of(job: job_pb2.JobConfig, path: str, added: model_pb2.Model | None = None) -> DecoderConfig:
    """The shape of the model at a path, or of the one that a stage "@name" will leave.

    Raises UserError where no config.json is at hand.
    """
    config = DecoderConfig.from_folder(_model_folder(job, path))
    if added is None:
        return config
    more = len(added.added_tokens) + max(0, added.semantic_id_count - config.semantic_id_count)
    return dataclasses.replace(config, vocabulary_size=config.vocabulary_size + more)


def _model_folder(job: job_pb2.JobConfig, path: str) -> Path:
    """Follows "@stage" to the model that its chain of stages starts from."""
    seen: set[str] = set()
    while path.startswith("@") and path not in seen:
        seen.add(path)
        stage = next((stage for stage in job.stages if f"@{stage.name}" == path), None)
        work = getattr(stage, stage.WhichOneof("work") or "") if stage else None
        model = getattr(work, "model", "")
        path = model if isinstance(model, str) else model.path
    if not path or path.startswith("@"):
        raise UserError(f"{path or 'the model'} is no stage that makes a model")
    return locate_model(Path(path)).base


def data_of(job: job_pb2.JobConfig, reference: str) -> Data:
    """What the manifest says where the data is prepared, else what the stage that will prepare it says."""
    try:
        data = artifacts.read(RunFolder.of(job).locate(reference)).data
    except (ArtifactError, OSError):
        stage = next((stage for stage in job.stages if f"@{stage.name}" == reference), None)
        return Data(stage.data_prep.packing.block_size if stage else 0)
    train = next((split for split in data.splits if split.name == "train"), None)
    if train is None or not train.token_count:
        return Data(data.block_size)
    blocks = train.block_count or (-(-train.token_count // data.block_size) if data.block_size else 0)
    return Data(
        block_size=data.block_size,
        num_blocks=blocks or None,
        num_documents=train.document_count or None,
        document_tokens=max(1, round(train.token_count / max(1, train.document_count))),
        trained_share=train.trained_token_count / train.token_count or None,
    )

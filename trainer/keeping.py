"""What a run keeps of itself: checkpoints and their encryption, held-out losses, metrics. Frozen dataclasses.

`from_proto` takes *resolved* messages (`finecut.proto.config.resolve`): every default is already filled in.
"""

from __future__ import annotations

import dataclasses

from finecut.proto import job_pb2, training_pb2


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept. `keep_every_steps` None: none is kept for good."""

    every_steps: int
    keep_last: int
    keep_every_steps: int | None
    asynchronous: bool

    @classmethod
    def from_proto(cls, proto: training_pb2.Checkpointing) -> CheckpointConfig:
        """From a resolved Checkpointing."""
        keep_every = proto.keep_every_steps if proto.HasField("keep_every_steps") else None
        return cls(proto.every_steps, proto.keep_last, keep_every, proto.asynchronous)


@dataclasses.dataclass(frozen=True)
class EncryptionConfig:
    """Server-side encryption with AWS KMS; `context` as pairs of key and value."""

    kms_key: str
    context: tuple[tuple[str, str], ...]
    bucket_key: bool

    @classmethod
    def from_proto(cls, proto: job_pb2.Storage) -> EncryptionConfig | None:
        """From a resolved Storage. None: the store's own setting holds."""
        if not proto.HasField("encryption"):
            return None
        encryption = proto.encryption
        return cls(encryption.kms_key, tuple(sorted(encryption.context.items())), encryption.bucket_key)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When the held-out loss is measured. None: only before the first and after the last step; all blocks."""

    every_steps: int | None
    max_blocks: int | None

    @classmethod
    def from_proto(cls, proto: training_pb2.InTrainingEvaluation) -> EvaluationConfig:
        """From a resolved InTrainingEvaluation."""
        return cls(
            every_steps=proto.every_steps if proto.HasField("every_steps") else None,
            max_blocks=proto.max_blocks if proto.HasField("max_blocks") else None,
        )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps that the profiler traces, the first and their number."""

    first_step: int
    num_steps: int


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """What is recorded: steps between records, between costlier ones (0: never), and what is out of the ordinary."""

    every_steps: int = 1
    detail_every_steps: int = 50
    spike_deviations: float = 6.0
    profile: ProfileConfig | None = None

    @classmethod
    def from_proto(cls, proto: training_pb2.Metrics) -> MetricsConfig:
        """From a resolved Metrics; one that an earlier version has stored lacks the newer fields."""
        default = cls()
        profile = ProfileConfig(proto.profile.first_step, proto.profile.step_count)
        return cls(
            every_steps=proto.every_steps or default.every_steps,
            detail_every_steps=proto.detail_every_steps
            if proto.HasField("detail_every_steps")
            else default.detail_every_steps,
            spike_deviations=proto.spike_deviations or default.spike_deviations,
            profile=profile if proto.HasField("profile") else None,
        )

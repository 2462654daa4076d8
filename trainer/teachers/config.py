"""Settings of what a teacher says and is kept."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from finecut.proto import recipes_pb2


class Maker(enum.Enum):
    """Who works it out: a forward pass of the trainer's own, or vLLM."""

    FORWARD = "forward"
    VLLM = "vllm"


@dataclasses.dataclass(frozen=True)
class TeacherCacheConfig:
    """`folder` None: in the stage's own."""

    maker: Maker = Maker.FORWARD
    folder: Path | None = None

    @classmethod
    def from_proto(cls, proto: recipes_pb2.TeacherCache) -> TeacherCacheConfig:
        """From a resolved TeacherCache."""
        maker = Maker.VLLM if proto.maker == recipes_pb2.TeacherCache.VLLM else Maker.FORWARD
        return cls(maker, Path(proto.folder) if proto.folder else None)

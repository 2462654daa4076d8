"""What a plan is about: one stage's model, batch and settings on so many devices of a kind."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.planning.gpus import Device


class Recompute(enum.Enum):
    """Which activations of a layer are computed again in the backward pass; names are those of the job file."""

    OFF = "OFF"
    SELECTIVE = "SELECTIVE"
    FULL = "FULL"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the ranks are laid out, and what each keeps: all that `parallelism: AUTO` chooses.

    `shard_size` ranks share one copy of the model; `replicate_size` copies; `tensor_size` ranks split each matrix.
    """

    shard_size: int = 1
    replicate_size: int = 1
    tensor_size: int = 1
    offload_optimizer: bool = False
    recompute: Recompute = Recompute.OFF
    micro_blocks: int = 1

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.shard_size * self.replicate_size * self.tensor_size

    @property
    def data_size(self) -> int:
        """Parts of a batch."""
        return self.shard_size * self.replicate_size


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model beside the trained one that only runs forward, and what it is for ("reference", "teacher", "reward")."""

    role: str
    config: DecoderConfig
    num_outputs: int | None = None


@dataclasses.dataclass(frozen=True)
class Workload:
    """One model's training.

    Attributes:
      number_bytes: Of activations and gathered parameters: 2 in BF16 and FP16, 4 in FP32.
      loss_chunk_tokens: Tokens whose logits exist at a time; None: as many as fit 1 GiB.
      num_outputs: Rows of an output head; None: the language-model head.
      document_lengths: Of typical documents; they set the share of attention. Empty: each block is one document.
      trained_share: Share of a block's tokens that are in the loss.
      gradient_bytes: Of a number in sums of gradients over micro-batches and ranks (parallelism.gradient_format).
    """

    config: DecoderConfig
    lora: LoraConfig | None
    block_size: int
    global_blocks: int
    device: Device
    number_bytes: int = 2
    compiled: bool = False
    loss_chunk_tokens: int | None = None
    num_outputs: int | None = None
    frozen: tuple[Frozen, ...] = ()
    document_lengths: Sequence[int] = ()
    trained_share: float = 1.0
    has_dropout: bool = False
    gradient_bytes: int = 4

    def micro_batches(self, layout: Layout) -> int:
        """Micro-batches of one rank a step."""
        return max(1, -(-self.global_blocks // (layout.micro_blocks * layout.data_size)))

    @property
    def lengths(self) -> Sequence[int]:
        """Lengths of documents."""
        return self.document_lengths or (self.block_size,)

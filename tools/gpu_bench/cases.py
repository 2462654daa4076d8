"""What is measured: models, documents, and how a step is made of them."""

from __future__ import annotations

import dataclasses

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.planning.known_shapes import LLAMA3_8B, QWEN3_06B, QWEN3_17B


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    `median` None: each block is one document; else lengths are log-normal with this median and sigma 1, cut at a block.
    `padded`: each row holds one document and padding up to `block` tokens, instead of packed documents.
    `training` is the text format of a TrainingConfig's fields beside precision, kernels and batch.
    `num_gpus`: where it runs, under torchrun if there are several; results are per GPU.
    """

    name: str
    shape: DecoderConfig
    block: int
    median: int | None = None
    micro_blocks: int = 1
    num_micro_batches: int = 8
    lora: LoraConfig | None = None
    padded: bool = False
    training: str = ""
    goal: str = ""
    num_gpus: int = 1


CASES = (
    Case("0.6B full, 16k, one document", QWEN3_06B, 16_384, goal="40,000 tok/s, 40 GiB"),
    Case("0.6B full, 8k log-normal", QWEN3_06B, 8_192, median=500, micro_blocks=2, goal="80,000 tok/s"),
    Case("1.7B full, 8k log-normal", QWEN3_17B, 8_192, median=500, micro_blocks=2, goal="MFU 48%, 44,000 tok/s"),
    Case("8B LoRA, 4k, one document", LLAMA3_8B, 4_096, micro_blocks=2, lora=LoraConfig(rank=16), goal="15,000 tok/s"),
    Case(
        "0.6B full, padded to 8k", QWEN3_06B, 8_192, median=500, micro_blocks=2, padded=True, goal="packed is 4.7 times"
    ),
    Case("8B full, 8k, FSDP 2", LLAMA3_8B, 8_192, num_micro_batches=1, num_gpus=2, goal="9,000 tok/s"),
    Case("8B full, 8k, FSDP 2, 4 a step", LLAMA3_8B, 8_192, num_micro_batches=4, num_gpus=2, goal="9,000 tok/s"),
    Case(
        "8B full, 8k, TP 2",
        LLAMA3_8B,
        8_192,
        num_micro_batches=1,
        num_gpus=2,
        training="parallelism { tensor_parallel_size: 2 }",
    ),
)

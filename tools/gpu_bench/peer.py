"""The same case through TRL with Liger's kernels and FlashAttention 4, in a process of its own; prints one JSON line.

    python -m finecut.tools.gpu_bench.peer "0.6B full, 8k log-normal"

The peer is given what makes it fast: pure BF16, packing without padding, fused AdamW, no checkpointing unless
memory runs out (--checkpointing). TRL is not in Finecut's lock; carry it to the host that measures.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from absl import app, flags

from finecut.tools.gpu_bench.cases import CASES, Case
from finecut.tools.gpu_bench.documents import row_lengths

_CHECKPOINTING = flags.DEFINE_bool("checkpointing", False, "Recompute activations.")
_STEPS = flags.DEFINE_integer("steps", 5, "Timed steps, after three to warm up.", lower_bound=1)
_WARM_UP = 3


def main(argv: list[str]) -> None:
    case = next(case for case in CASES if case.name == argv[1])
    print(json.dumps(measure(case, _STEPS.value, _CHECKPOINTING.value)))


def measure(case: Case, num_steps: int, checkpointing: bool) -> dict[str, float]:
    """Tokens a second and peak GiB of TRL's SFTTrainer on the case's documents."""
    import transformers
    import trl

    clock = _clock(transformers.TrainerCallback)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=_model(case),
            args=trl.SFTConfig(
                output_dir=folder,
                max_steps=_WARM_UP + num_steps,
                per_device_train_batch_size=case.micro_blocks,
                gradient_accumulation_steps=case.num_micro_batches,
                max_length=case.block,
                packing=True,
                use_liger_kernel=True,
                gradient_checkpointing=checkpointing,
                bf16=True,
                optim="adamw_torch_fused",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=_documents(case, _WARM_UP + num_steps),
            processing_class=_tokenizer(folder),
            callbacks=[clock],
        )
        rows = trainer.train_dataset
        mean_row = sum(len(row) for row in rows["input_ids"]) / len(rows)
        trainer.train()
    tokens = mean_row * case.micro_blocks * case.num_micro_batches * num_steps
    seconds = clock.times[-1] - clock.times[_WARM_UP - 1]
    return {"tokens_per_second": tokens / seconds, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def _clock(base: type) -> Any:
    class Clock(base):  # type: ignore[misc]
        """When each step ended on the device."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    return Clock()


def _model(case: Case) -> Any:
    import transformers

    shape = case.shape
    config = transformers.AutoConfig.for_model(
        "qwen3",
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tied_embeddings,
    )
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="flash_attention_4"
        )


def _documents(case: Case, num_steps: int) -> Any:
    import datasets

    random = np.random.default_rng(0)
    lengths: list[int] = []
    for _ in range((num_steps + 1) * case.micro_blocks * case.num_micro_batches):
        lengths += row_lengths(case, random)
    ids = [random.integers(0, case.shape.vocabulary_size, length).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids})


def _tokenizer(folder: str) -> Any:
    """TRL wants one, and uses its padding token alone."""
    import tokenizers
    import transformers

    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    app.run(main, sys.argv)

"""GRPO through TRL with vLLM on the same GPU, for comparison with `grpo`; prints one JSON line.

    python -m finecut.tools.gpu_bench.peer_grpo --steps=3

The sizes are `grpo`'s. TRL is not in Finecut's lock; carry it to the host that measures.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import app, flags

from finecut.tools.gpu_bench import models
from finecut.trainer.parallel.leaving import leave

_SHAPE = flags.DEFINE_enum("shape", "1.7B", list(models.SHAPES), "Size of the model.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps; the first does not count.", lower_bound=2)
_PROMPTS = flags.DEFINE_integer("prompts", 64, "Prompts a step.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 8, "Answers a prompt.", lower_bound=2)
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 128, "Tokens of a prompt.", lower_bound=1)
_ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 512, "Tokens of an answer.", lower_bound=1)
_MICRO_BATCH = flags.DEFINE_integer("micro_batch", 16, "Sequences of a micro-batch.", lower_bound=1)
_MEMORY = flags.DEFINE_float("memory", 0.4, "Share of the GPU's memory that the engine takes.")


def main(argv: list[str]) -> int:
    """Measures, and prints."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_measure(Path(folder))), flush=True)
    return 0


def _measure(root: Path) -> dict[str, Any]:
    import transformers
    import trl

    class Clock(transformers.TrainerCallback):
        """When each step ended on the device."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    clock = Clock()
    model = models.write_model(models.SHAPES[_SHAPE.value], root / "model")
    sequences = _PROMPTS.value * _SAMPLES.value
    trainer = trl.GRPOTrainer(
        model=str(model),
        reward_funcs=_reward,
        args=trl.GRPOConfig(
            output_dir=str(root / "out"),
            max_steps=_STEPS.value,
            per_device_train_batch_size=_MICRO_BATCH.value,
            gradient_accumulation_steps=sequences // _MICRO_BATCH.value,
            num_generations=_SAMPLES.value,
            max_completion_length=_ANSWER_TOKENS.value,
            generation_kwargs={"ignore_eos": True},
            use_vllm=True,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=_MEMORY.value,
            vllm_max_model_length=_PROMPT_TOKENS.value + _ANSWER_TOKENS.value + 8,
            use_liger_kernel=True,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "bfloat16"},
            bf16=True,
            beta=0.0,
            optim="adamw_torch_fused",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=_prompts(),
        callbacks=[clock],
    )
    trainer.train()
    steps = np.diff(clock.times).tolist()
    return {"step_seconds": steps, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def _prompts() -> Any:
    import datasets

    random = np.random.default_rng(0)
    letters = [chr(ord("a") + number) for number in range(26)]
    texts = ["".join(random.choice(letters, _PROMPT_TOKENS.value)) for _ in range(_PROMPTS.value * (_STEPS.value + 1))]
    return datasets.Dataset.from_dict({"prompt": texts})


def _reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float("e" in str(completion)) for completion in completions]


if __name__ == "__main__":
    app.run(lambda argv: leave(main(argv)))

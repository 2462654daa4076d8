"""Tokens a second of vLLM by itself: what rollouts inside a recipe are held against.

    python -m finecut.tools.gpu_bench.rollout --model=FOLDER        # prints one line of JSON

The engine is started as the recipe's are (same lengths, sequences, memory and kernels), and given everything at once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from finecut.trainer.parallel.leaving import leave

_MODEL = flags.DEFINE_string("model", None, "Folder with config.json; weights are random.", required=True)
_PROMPTS = flags.DEFINE_integer("prompts", 64, "Prompts.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 8, "Answers a prompt.", lower_bound=1)
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 128, "Tokens of a prompt.", lower_bound=1)
_ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 512, "Tokens of an answer.", lower_bound=1)
_MEMORY = flags.DEFINE_float("memory", 0.5, "Share of the GPU's memory.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds, after one to warm up.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Measures, and prints."""
    del argv
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(Path(_MODEL.value).absolute()),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        load_format="dummy",
        max_model_len=_PROMPT_TOKENS.value + _ANSWER_TOKENS.value,
        max_num_seqs=256,
        gpu_memory_utilization=_MEMORY.value,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
    )
    start_seconds = time.perf_counter() - began
    sampling = SamplingParams(
        temperature=1.0, max_tokens=_ANSWER_TOKENS.value, ignore_eos=True, logprobs=0, detokenize=False
    )
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(_ROUNDS.value + 1):
        prompts = random.integers(10, 400, (_PROMPTS.value, _PROMPT_TOKENS.value)).repeat(_SAMPLES.value, axis=0)
        began = time.perf_counter()
        llm.generate([{"prompt_token_ids": ids.tolist()} for ids in prompts], sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
    tokens = _PROMPTS.value * _SAMPLES.value * _ANSWER_TOKENS.value
    timed = seconds[1:]
    result = {
        "tokens_per_second": tokens * len(timed) / sum(timed),
        "spread": (max(timed) - min(timed)) / min(timed),
        "start_seconds": start_seconds,
    }
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    app.run(lambda argv: leave(main(argv)))

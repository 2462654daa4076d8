"""A tiny model that vLLM runs on CPUs, and an engine in the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import transformers
from safetensors.torch import load_file, save_file

from finecut.dataprep.testing import TURN_END
from finecut.trainer.rollout import backends
from finecut.trainer.rollout.engine import Engine
from finecut.trainer.rollout.engine_config import EngineConfig
from finecut.trainer.testing import write_tiny_model

_Result = TypeVar("_Result")


def write_tiny_policy(folder: Path, family: str = "llama", **fields: Any) -> Path:
    """As `write_tiny_model`, with heads of 32: vLLM's attention on CPUs takes no smaller ones."""
    fields = {"head_dim": 32} | fields
    return write_tiny_model(folder, family, **{name: value for name, value in fields.items() if value is not None})


def write_talkative_policy(folder: Path) -> Path:
    """As `write_tiny_policy`, but about half of its tokens end its turn, whatever it reads.

    The first coordinate of its hidden states is constant, and acts as a bias of the head.
    """
    write_tiny_policy(folder)
    turn_end = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(TURN_END)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 5
    tensors["model.norm.weight"][0] = 1
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[0] = 0
    tensors["lm_head.weight"][:, 0] = 0
    tensors["lm_head.weight"][turn_end, 0] = 15
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def tiny_engine_config(model: Path, **fields: Any) -> EngineConfig:
    """An FP32 engine on a CPU core."""
    defaults: dict[str, Any] = {
        "number_type": "float32",
        "max_sequence_tokens": 256,
        "max_sequences": 16,
        "transfer_backend": backends.SHARED_MEMORY,
    }
    return EngineConfig(model=model, **(defaults | fields))


class LocalEngine:
    """An engine without Ray: its coroutines run on an event loop in a thread. Also the `Engines` of a WeightSync."""

    tensor_parallel_sizes = (1,)

    def __init__(self, config: EngineConfig) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.engine = Engine(config)
        self.run(self.engine.ready())

    def run(self, coroutine: Coroutine[Any, Any, _Result], timeout_s: float = 900) -> _Result:
        """Waits for the coroutine's result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> Any:
        """The future of the coroutine's result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, method: str, *arguments: Any) -> None:
        """See weight_sync.Engines."""
        self.run(getattr(self.engine, method)(*arguments))

    def call_each(self, method: str, arguments: Sequence[Any]) -> None:
        """See weight_sync.Engines."""
        self.call(method, *arguments)

    def shut_down(self) -> None:
        """Ends the engine and the thread."""
        self.run(self.engine.shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)

"""One vLLM engine: answers to token ids, and the weights that they are sampled with.

    READY      samples; weights are those of `policy_version`
      | start_weight_update                         | sleep
      v                                             v
    SYNCING    requests stay in flight, frozen    ASLEEP     memory is free, requests are refused
      | finish_weight_update: checksums equal?      | wake
      v                                             v
    READY (next version)                          UNSYNCED   memory is back, its weights are nobody's: refused
                                                    | start_weight_update, finish_weight_update
                                                    v
                                                  READY

An engine that slept never samples before a synchronisation is complete, whatever vLLM restored.
All methods are coroutines, so that one Ray actor takes requests while others run; the class works without Ray, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from finecut.proto.config import UserError
from finecut.trainer.models.adapter import TENSOR_FILE
from finecut.trainer.rollout import checksums, vllm_parts
from finecut.trainer.rollout.engine_config import (
    EngineConfig,
    EngineStatus,
    Generation,
    Request,
    StaleWeightsError,
    WeightSyncError,
)
from finecut.trainer.rollout.engine_loop import EngineLoop, PolicyLabel

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

_SHOWN = 5  # names in one message


class State(enum.Enum):
    """See the diagram above."""

    READY = "ready"
    SYNCING = "synchronising its weights"
    ASLEEP = "asleep"
    UNSYNCED = "awake, but its weights have not been synchronised since it slept, started empty or failed to"


class Engine:
    """A vLLM engine that knows which policy version it holds."""

    def __init__(self, config: EngineConfig, policy_version: int = 0) -> None:
        """Starts at once and loads in the background; `ready` waits for it.

        Args:
          policy_version: of the weights in `config.model`.
        """
        self._config = config
        self._version: int | None = policy_version if config.load_weights else None
        self._state = State.READY if config.load_weights else State.UNSYNCED
        self._cache_sleeps = False
        self._cache_wake_seconds = 0.0
        self._adapter: Any = None
        self._adapter_folders: list[Path] = []
        self._loop = EngineLoop(lambda: vllm_parts.start_engine(config))

    async def ready(self) -> EngineStatus:
        """Waits until the engine can be used. Raises UserError when vLLM cannot start."""
        await self._call(self._set_first_label)
        return await self.status()

    async def status(self) -> EngineStatus:
        """Where the engine stands; answers while it is busy."""
        version = self._version if self._state in (State.READY, State.SYNCING) else None
        return EngineStatus(
            os.getpid(),
            version,
            self._state is State.ASLEEP,
            self._loop.outstanding_tokens,
            self._cache_wake_seconds,
        )

    def num_sampled_tokens(self, request_id: str) -> int:
        """Tokens that a request in flight has so far; 0 when it is not, or not yet, in flight."""
        return self._loop.call(lambda engine: self._loop.num_sampled_tokens(engine, request_id)).result()

    async def generate(self, request: Request) -> Generation:
        """One answer. Waits while weights are being synchronised.

        Raises:
          StaleWeightsError: The engine has no weights that the trainer vouches for.
          UserError: The prompt and the longest answer are longer than the engine allows, or the prompt is empty.
          AbortedError, EngineDiedError: It was taken back; the engine failed.
        """
        self._check_request(request)
        return await asyncio.wrap_future(self._loop.submit(request, self._config.seeded, self._adapter))

    async def abort(self, request_ids: list[str] | None = None) -> None:
        """Takes requests in flight back; None means all of them."""
        await self._call(lambda engine: self._loop.abort(engine, request_ids))

    async def sleep(self) -> None:
        """Gives the memory of weights and cache back to the trainer. Raises UserError while requests are in flight."""
        if self._state is State.ASLEEP:
            return
        if self._loop.num_running:
            raise UserError(f"the engine cannot sleep with {self._loop.num_running} requests in flight; abort them")
        self._version, self._state = None, State.ASLEEP
        await self._call(self._fall_asleep)

    async def wake(self) -> None:
        """Takes the memory back. The engine refuses requests until weights have been synchronised."""
        if self._state is not State.ASLEEP:
            return
        await self._call(self._wake_up)
        self._state = State.UNSYNCED

    async def checksums(self) -> dict[str, int]:
        """The checksum of every tensor, by Hugging Face's name, of the weights that lie in the engine's memory."""
        return await self._call(_checksums)

    # The four calls of vLLM's weight-transfer API.

    async def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connects to the sender; the backend says what it needs."""
        await self._rpc("init_weight_transfer_engine", init_info=dict(init_info))

    async def start_weight_update(self) -> None:
        """Freezes sampling and makes the model ready for new weights. Raises UserError while it cannot take them."""
        if self._state is State.ASLEEP:
            raise StaleWeightsError("the engine is asleep and cannot take weights; wake it first")
        if self._adapter and self._loop.num_running:
            raise UserError("requests in flight use an adapter, which fits the present weights only; wait for them")
        self._state = State.SYNCING
        await self._call(self._loop.freeze)
        await self._rpc("start_weight_update")

    async def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Takes one batch of tensors."""
        await self._rpc("update_weights", update_info=dict(update_info))

    async def finish_weight_update(self, policy_version: int, expected: Mapping[str, int]) -> None:
        """Puts the new weights in force, if they are the sender's, and goes on sampling.

        Requests in flight go on with the new weights: what they have is kept and labelled with the version that
        sampled it; their keys and values are computed again.

        Args:
          expected: checksum of each tensor that was sent.

        Raises:
          WeightSyncError: The engine holds other weights than were sent. It refuses to sample from then on.
        """
        await self._rpc("finish_weight_update")
        found = await self._call(_checksums)
        if names := checksums.differing(expected, found):
            await self.fail_weight_update()
            what = f"{_list(names)} in the engine are not the trainer's"
            raise WeightSyncError(f"after synchronising policy version {policy_version}, {what}")
        label = PolicyLabel(policy_version, checksums.digest(found))
        await self._call(lambda engine: self._put_in_force(engine, label))
        self._version, self._state = policy_version, State.READY

    async def fail_weight_update(self) -> None:
        """Gives up on a synchronisation: what is in flight fails, and so does what is asked for before the next.

        Does nothing in an engine that has not begun one.
        """
        if self._state is not State.SYNCING:
            return
        self._version, self._state = None, State.UNSYNCED
        error = StaleWeightsError("a weight synchronisation failed while the request was in flight")
        await self._call(lambda engine: self._loop.fail_all(error))
        with contextlib.suppress(Exception):  # ended already, or broken: the next one starts anew in either case
            await self._rpc("finish_weight_update")

    async def install_adapter(
        self, policy_version: int, files: Mapping[str, bytes], expected: Mapping[str, int]
    ) -> None:
        """Samples new requests with this adapter; those in flight keep the one they began with.

        Args:
          files: the adapter's folder in PEFT's format, by file name.
          expected: checksum of each tensor of the base model, and of each tensor of the adapter under PEFT's name.

        Raises:
          WeightSyncError: The engine's base weights are not the trainer's, or the adapter did not arrive whole.
        """
        if self._state is State.ASLEEP:
            raise StaleWeightsError("the engine is asleep and cannot take an adapter; wake it first")
        arrived = {n: checksums.tensor_checksum(t) for n, t in safetensors.torch.load(files[TENSOR_FILE]).items()}
        found = await self._call(_checksums) | arrived
        if names := checksums.differing(expected, found):
            self._version, self._state = None, State.UNSYNCED
            raise WeightSyncError(
                f"policy version {policy_version} was sent as an adapter, but {_list(names)} in the engine are not the "
                "trainer's; send all weights first"
            )
        folder = self._write_adapter(files)
        label = PolicyLabel(policy_version, checksums.digest(found))
        self._adapter = await self._call(lambda engine: self._load_adapter(engine, folder, label))
        self._version, self._state = policy_version, State.READY

    async def shut_down(self) -> None:
        """Ends the engine."""
        await asyncio.to_thread(self._loop.shut_down)
        for folder in self._adapter_folders:
            shutil.rmtree(folder)

    def _check_request(self, request: Request) -> None:
        if self._state in (State.ASLEEP, State.UNSYNCED):
            raise StaleWeightsError(
                f"the engine is {self._state.value}; it samples only after a synchronisation from the trainer"
            )
        self._config.check(request)

    async def _call(self, function: Any) -> Any:
        return await asyncio.wrap_future(self._loop.call(function))

    async def _rpc(self, method: str, **arguments: Any) -> None:
        await self._call(lambda engine: engine.collective_rpc(method, kwargs=arguments))

    # In the loop's thread:

    def _set_first_label(self, engine: LLMEngine) -> None:
        if self._version is not None:
            label = PolicyLabel(self._version, checksums.digest(_checksums(engine)))
            self._loop.set_label(engine, label, in_flight=False)

    def _fall_asleep(self, engine: LLMEngine) -> None:
        self._loop.freeze(engine)
        engine.reset_prefix_cache()
        if self._config.can_sleep and torch.cuda.is_available():
            # Level 2: weights are thrown away. The trainer sends them anyway, so a copy would only cost host memory.
            # Under adapters the base stays what it is and is not sent: level 1 keeps it on the host.
            engine.sleep(level=1 if self._config.adapter_rank else 2)
            self._cache_sleeps = True
        elif not self._config.adapter_rank:
            engine.collective_rpc("finecut_discard_weights")

    def _wake_up(self, engine: LLMEngine) -> None:
        """Only the weights' memory: that of the cache is taken when the trainer has let go of its own copy."""
        if self._cache_sleeps:
            engine.wake_up(tags=["weights"])

    def _wake_cache(self, engine: LLMEngine) -> None:
        if self._cache_sleeps:
            began = time.perf_counter()
            engine.wake_up(tags=["kv_cache"])
            self._cache_wake_seconds = time.perf_counter() - began
            self._cache_sleeps = False

    def _put_in_force(self, engine: LLMEngine, label: PolicyLabel) -> None:
        self._adapter = None
        self._wake_cache(engine)
        # Cached keys and values, of requests in flight too, are of the old weights.
        engine.reset_prefix_cache(reset_running_requests=True)
        self._loop.set_label(engine, label, in_flight=True)
        self._loop.thaw(engine)

    def _write_adapter(self, files: Mapping[str, bytes]) -> Path:
        """vLLM reads adapters from folders, and may read one again while requests with it are in flight."""
        folder = Path(tempfile.mkdtemp(prefix="finecut_adapter_"))
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self._adapter_folders.append(folder)
        for old in self._adapter_folders[: -vllm_parts.KEPT_ADAPTERS]:
            shutil.rmtree(old)
        del self._adapter_folders[: -vllm_parts.KEPT_ADAPTERS]
        return folder

    def _load_adapter(self, engine: LLMEngine, folder: Path, label: PolicyLabel) -> Any:
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest(f"policy-{label.version}", label.version + 1, str(folder))
        self._wake_cache(engine)
        engine.add_lora(adapter)
        self._loop.set_label(engine, label, in_flight=False)
        self._loop.thaw(engine)
        return adapter


def _checksums(engine: LLMEngine) -> dict[str, int]:
    return checksums.combine(engine.collective_rpc("finecut_weight_checksums"))


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"

"""Sends the policy's weights from the trainer to the engines, through vLLM's weight-transfer API.

    every trainer rank                                   every engine
    for tensor in source: gather, convert          start_weight_update: freeze sampling
      rank 0: checksum, pack, send        ------>  update_weights: write in place
    rank 0: finish(version, checksums)    ------>  finish_weight_update: checksums of its memory equal? thaw

The sender decides how bytes travel: NCCL to other GPUs, CUDA IPC to engines on the same GPU, shared memory on CPUs.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.rollout import backends, shared_memory
from finecut.trainer.rollout.ahead import Ahead
from finecut.trainer.rollout.checksums import Checksums, Part
from finecut.trainer.rollout.weight_source import DecoderSource, TensorSpec, adapter_checksums, adapter_files

# Bytes sent at a time, and gathered ahead; more would only take memory from the cache.
BUCKET_BYTES = 1 << 30

# Time for engines to hear that a synchronisation failed.
_PATIENCE_S = 10.0


class Engines(Protocol):
    """The engines to send to, as rank 0 of the trainer sees them."""

    @property
    def tensor_parallel_sizes(self) -> Sequence[int]:
        """Workers of each engine."""

    def call(self, method: str, *arguments: Any) -> None:
        """Calls the method of every `engine.Engine` at once; returns when all are done, raises what one raised."""

    def call_each(self, method: str, arguments: Sequence[Any]) -> None:
        """As `call`, with one argument of its own for each engine."""


class WeightSync:
    """The trainer's end. Made, and called, on every rank; only rank 0 has the engines."""

    def __init__(self, source: DecoderSource, engines: Engines | None, backend: str) -> None:
        """Connects.

        Args:
          engines: None on ranks other than 0.
          backend: see backends.py.

        Raises UserError for another backend, and for a mixture of experts.
        """
        if backend not in _SENDERS:
            raise UserError(f"weight transfer backend {backend!r} is unknown; use one of {', '.join(_SENDERS)}")
        if source.model.config.experts:
            raise UserError(
                "rollouts of a mixture of experts are not in this version: vLLM packs the experts' matrices, so that "
                "it cannot be verified that an engine holds the trainer's; use a dense model"
            )
        self._source = source
        self._specs = source.metadata()
        self._engines = engines
        self._sender = _SENDERS[backend](engines)
        self._sender.connect()

    def send(self, policy_version: int) -> dict[str, int]:
        """Sends all weights and puts them in force as `policy_version`. Collective over the trainer's ranks.

        Returns the checksum of each tensor sent, on rank 0; nothing elsewhere.
        Raises WeightSyncError, on rank 0, when an engine holds other weights afterwards.
        """
        checksums = Checksums()
        tensors: Iterable[tuple[str, Tensor]] = self._source
        if self._engines:
            tensors = _with_checksums(self._source, checksums)
        try:
            if self._engines:
                self._engines.call("start_weight_update")
            self._sender.send(self._specs, tensors)
            found = checksums.settle()  # once all is under way: it waits for the device
            if self._engines:
                self._engines.call("finish_weight_update", policy_version, found)
        except BaseException:
            self._give_up()
            raise
        return found

    def _give_up(self) -> None:
        """Tells the engines, but does not wait for ever: one may hang in a broadcast that nobody sends any more."""
        if not (engines := self._engines):
            return

        def tell() -> None:
            with contextlib.suppress(Exception):  # the error that led here is the one to be seen
                engines.call("fail_weight_update")

        thread = threading.Thread(target=tell, name="give_up_weight_update", daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)

    def send_adapter(self, policy_version: int, base_checksums: Mapping[str, int]) -> dict[str, int]:
        """Sends the adapters alone; the engines keep the frozen base model that they have. Collective.

        Unlike merged weights, which a 16-bit type rounds, the engines then compute base and adapter apart, as the
        trainer does, and a sync moves megabytes instead of gigabytes.

        Args:
          base_checksums: of the base, as `DecoderSource(model, ..., merge_adapters=False).checksums()` gave once.

        Returns the checksum of each tensor of base and adapter, on rank 0.
        """
        found = dict(base_checksums) | adapter_checksums(self._source.model)
        files = adapter_files(self._source.model)
        if not self._engines:
            return {}
        self._engines.call("install_adapter", policy_version, files, found)
        return found


def _with_checksums(source: DecoderSource, checksums: Checksums) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in source:
        checksums.add(Part.whole(name, tensor))
        yield name, tensor


class _Sender(abc.ABC):
    """How bytes travel. `connect` and `send` are called on every rank."""

    def __init__(self, engines: Engines | None) -> None:
        self._engines = engines

    @abc.abstractmethod
    def connect(self) -> None:
        """Meets the engines. Again after an engine was restarted."""

    @abc.abstractmethod
    def send(self, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Brings all tensors into the engines, between their start and finish of an update."""


class SharedMemorySender(_Sender):
    """For engines on the CPUs of the trainer's host."""

    def connect(self) -> None:
        if self._engines:
            self._engines.call("init_weight_transfer_engine", {})

    def send(self, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]]) -> None:
        if not self._engines:
            _exhaust(tensors)
            return
        ahead = Ahead(tensors)
        with ThreadPoolExecutor(1) as executor:
            for bucket in shared_memory.fill_buckets(ahead, BUCKET_BYTES):
                loading = executor.submit(self._engines.call, "update_weights", shared_memory.payload(bucket))
                ahead.gather(BUCKET_BYTES)
                loading.result()


class NcclSender(_Sender):
    """For engines on GPUs that the trainer does not use: packed broadcasts from rank 0 to all workers."""

    _NUM_BUFFERS = 2

    def connect(self) -> None:
        if not self._engines:
            return
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, trainer_init

        sizes = self._engines.tensor_parallel_sizes
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        meeting = {"master_address": _own_address(), "master_port": port, "world_size": 1 + sum(sizes)}
        # Up to vLLM 0.26 the packing travels with each update; later, with the introduction.
        known = {field.name for field in dataclasses.fields(NCCLWeightTransferInitInfo)}
        self._packing_in_update = "packed" not in known
        extra = {} if self._packing_in_update else self._packing()
        infos = [meeting | extra | {"rank_offset": 1 + sum(sizes[:number])} for number in range(len(sizes))]
        with ThreadPoolExecutor(1) as executor:  # both sides wait for each other
            workers = executor.submit(self._engines.call_each, "init_weight_transfer_engine", infos)
            self._group = trainer_init(meeting)
            workers.result()

    def send(self, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]]) -> None:
        if not self._engines:
            _exhaust(tensors)
            return
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        update = {
            "names": [spec.name for spec in specs],
            "dtype_names": [str(spec.dtype).removeprefix("torch.") for spec in specs],
            "shapes": [list(spec.shape) for spec in specs],
        }
        update |= self._packing() if self._packing_in_update else {}
        executor = ThreadPoolExecutor(1)
        try:
            workers = executor.submit(self._engines.call, "update_weights", update)
            packed_nccl_broadcast_producer(
                iterator=iter(tensors),
                group=self._group,
                src=0,
                post_iter_func=lambda item: item[1],
                buffer_size_bytes=BUCKET_BYTES,
                num_buffers=self._NUM_BUFFERS,
            )
            workers.result()
        finally:
            # Where the broadcast failed, workers wait for it for ever; waiting for them would hide the error.
            executor.shutdown(wait=False)
        torch.cuda.current_stream().synchronize()

    def _packing(self) -> dict[str, Any]:
        return {"packed": True, "packed_buffer_size_bytes": BUCKET_BYTES, "packed_num_buffers": self._NUM_BUFFERS}


class IpcSender(_Sender):
    """For engines on the trainer's own GPUs: workers map the memory of the rank on their GPU."""

    def connect(self) -> None:
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo

        known = {field.name for field in dataclasses.fields(IPCWeightTransferInitInfo)}
        self._packing_in_update = "packed" not in known  # as for NCCL
        if self._engines:
            self._engines.call("init_weight_transfer_engine", {} if self._packing_in_update else {"packed": True})

    def send(self, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, Tensor]]) -> None:
        import base64
        import pickle

        from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        ahead = Ahead(tensors)
        # The buffer holds the largest tensor, such as the embedding of 152k x 4096 in BF16, whole.
        size = max([BUCKET_BYTES, *(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)])
        with ThreadPoolExecutor(1) as executor:
            for chunk in packed_ipc_producer(iter(ahead), gpu, lambda item: item[1], size):
                handles = _gather_handles(chunk.ipc_handle)
                update = {
                    "names": chunk.names,
                    "dtype_names": chunk.dtype_names,
                    "shapes": chunk.shapes,
                    "tensor_sizes": chunk.tensor_sizes,
                    "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode(),
                }
                update |= {"packed": True} if self._packing_in_update else {}
                call = self._engines.call if self._engines else None
                loading = executor.submit(call, "update_weights", update) if call else None
                ahead.gather(BUCKET_BYTES)
                if loading:
                    loading.result()
                _barrier()  # the buffer is used again for the next chunk
        torch.cuda.ipc_collect()


def _gather_handles(handle: dict[str, Any]) -> dict[str, Any]:
    """Handles of all ranks' buffers, by GPU."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return handle
    gathered: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, handle)
    torch.cuda.synchronize()
    return {gpu: value for handles in gathered for gpu, value in handles.items()}


def _barrier() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()


def _exhaust(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Takes part in the gathers of the others."""
    for _ in tensors:
        pass


def _own_address() -> str:
    import ray

    return ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"


_SENDERS: dict[str, type[_Sender]] = {
    backends.NCCL: NcclSender,
    backends.IPC: IpcSender,
    backends.SHARED_MEMORY: SharedMemorySender,
}

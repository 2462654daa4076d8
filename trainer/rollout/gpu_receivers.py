"""The engine's side of NCCL and CUDA IPC: vLLM's own, writing in place. Runs in vLLM's worker process."""

from __future__ import annotations

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from finecut.trainer.rollout.in_place import WritesInPlace


class NcclReceiver(WritesInPlace, NCCLWeightTransferEngine):
    """Packed broadcasts from the trainer's rank 0."""


class IpcReceiver(WritesInPlace, IPCWeightTransferEngine):
    """Memory of the rank on the same GPU."""

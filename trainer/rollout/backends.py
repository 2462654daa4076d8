"""How weights come to engines: names of the backends, as vLLM's factory knows them in its worker processes.

All are vLLM's `WeightTransferEngine`s: its own for NCCL and CUDA IPC, which write in place (see in_place.py), and one
through memory that two processes of a host share.
"""

from __future__ import annotations

import contextlib

NCCL = "finecut_nccl"
IPC = "finecut_ipc"
SHARED_MEMORY = "finecut_shared_memory"

_RECEIVERS = {
    NCCL: ("finecut.trainer.rollout.gpu_receivers", "NcclReceiver"),
    IPC: ("finecut.trainer.rollout.gpu_receivers", "IpcReceiver"),
    SHARED_MEMORY: ("finecut.trainer.rollout.shared_memory_receiver", "Receiver"),
}


def register_receivers() -> None:
    """Makes the backends known to vLLM in this process. Safe to call again."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, (module, receiver) in _RECEIVERS.items():
        with contextlib.suppress(ValueError):  # registered already
            WeightTransferEngineFactory.register_engine(name, module, receiver)

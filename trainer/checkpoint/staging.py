"""A copy of the train state in host memory, so that training goes on while the copy is written."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.distributed.checkpoint._state_dict_stager import StateDictStager


class Staging:
    """Copies a state dict into buffers that are made once and used again; pinned where the tensors are on a GPU.

    The copy is overwritten by the next one.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        # Public `DefaultStager` wraps it, and up to torch 2.11 is closed after its first copy.
        self._stager = StateDictStager(pin_memory=self._on_gpu, share_memory=False)

    def copy(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same state dict in host memory; what it holds no longer changes when the original does."""
        copied = self._stager.stage(tensors, non_blocking=self._on_gpu)
        if self._on_gpu:
            torch.cuda.synchronize()
        return cast(dict[str, Any], copied)

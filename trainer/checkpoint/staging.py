"""A copy of the train state in host memory, so that training goes on while the copy is written."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class Staging:
    """Copies a state dict into buffers that are made once and used again; pinned where the tensors are on a GPU.

    The copy is overwritten by the next one.
    """

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )

    def copy(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same state dict in host memory; what it holds no longer changes when the original does."""
        return cast(dict[str, Any], self._stager.stage(tensors))

"""The engine's side of the shared-memory backend, as vLLM's `WeightTransferEngine`. Runs in vLLM's worker process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from finecut.trainer.rollout.in_place import WritesInPlace
from finecut.trainer.rollout.shared_memory import Bucket, read_bucket


@dataclasses.dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on."""


@dataclasses.dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A `Bucket`, field by field."""

    path: str
    num_bytes: int
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class _LayerByLayer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads through the model's own loader, as vLLM's GPU backends do."""

    def start_weight_update(self) -> None:
        """Makes the layers ready to be loaded again."""
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Puts the loaded layers in place of the old ones."""
        finalize_layerwise_reload(self.model, self.model_config)


class Receiver(WritesInPlace, _LayerByLayer):
    """Loads each bucket from its file."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to connect to."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads one bucket. vLLM's loader keeps tensors until their layer is complete, hence the copies."""
        tensors = read_bucket(Bucket(**dataclasses.asdict(update_info)))
        copied = not self.is_in_place
        self.model.load_weights((name, tensor.to(self.device, copy=copied)) for name, tensor in tensors)

    def update_weights(self, update_info: dict) -> None:
        """As the base class, without its wait for a GPU that may not be there."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def shutdown(self) -> None:
        """Holds nothing."""

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
        """vLLM 0.26 declares it abstract and never calls it; `weight_sync.SharedMemorySender` sends."""
        raise AssertionError("weights are sent by finecut.trainer.rollout.weight_sync")

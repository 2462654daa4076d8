"""Writes and reads the checkpoints of a run: sharded tensors, one random state a rank, one JSON of plain numbers.

    step-00000100/
      tensors/           model and optimizer, each rank its shards (torch.distributed.checkpoint)
      random/rank-0.pt   generators of one rank
      train_state.json   step, loss scale, metrics, config fingerprint
      manifest.json      SHA-256 of all of it, written last

Synchronous: `save` returns when the checkpoint counts. Every method is collective.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from finecut.proto.config import UserError
from finecut.trainer.checkpoint import manifest, random_state
from finecut.trainer.config import CheckpointConfig
from finecut.trainer.parallel.process_group import Devices

# Only what is trained: under LoRA the adapters, a thousandth of the model.
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclasses.dataclass
class TrainState:
    """The plain numbers of a run after `step` steps, and what they belong to.

    `blocks` is the position in the data: blocks taken from the stream. `metrics` are those that the manifest of the
    finished stage carries. `tensor_size` is that of the mesh which the random states belong to.
    """

    config_fingerprint: str
    data_fingerprint: str
    step: int = 0
    blocks: int = 0
    tensor_size: int = 1
    loss_scale: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one stage, in one folder that every rank sees."""

    def __init__(self, root: Path, config: CheckpointConfig, seed: int, devices: Devices) -> None:
        self._root = root
        self._config = config
        self._seed = seed
        self._devices = devices

    def due(self, step: int, last_step: int) -> bool:
        """Whether a checkpoint belongs after `step`: at every multiple, and at the end."""
        return step % self._config.every_steps == 0 or step == last_step

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> Path:
        """Writes a checkpoint, then deletes those no longer kept. Returns its folder."""
        folder = manifest.folder_of(self._root, state.step)
        if self._devices.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left of this step
            (folder / "random").mkdir(parents=True)
        self._devices.barrier()
        torch.save(random_state.capture(), folder / "random" / f"rank-{self._devices.rank}.pt")
        dcp.save(_tensors(model, optimizer), checkpoint_id=folder / "tensors")
        state.tensor_size = self._devices.tensor_size
        if self._devices.is_main:
            (folder / "train_state.json").write_text(json.dumps(dataclasses.asdict(state), indent=1))
        self._devices.barrier()
        self._finish(folder)
        return folder

    def _finish(self, folder: Path) -> None:
        shares: list[dict[str, str]] = [{}] * self._devices.world_size
        dist.all_gather_object(shares, manifest.hashes(folder, self._devices.rank, self._devices.world_size))
        if self._devices.is_main:
            manifest.finish(folder, {path: sha256 for share in shares for path, sha256 in share.items()})
            manifest.prune(self._root, self._config.keep_last, self._config.keep_every_steps)
        self._devices.barrier()

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, and a sentence for each newer one that is torn. Rank 0 looks; all agree."""
        found = manifest.newest_whole(self._root) if self._devices.is_main else (None, [])
        return self._devices.from_main(found)

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fresh: TrainState) -> TrainState:
        """Restores model, optimizer and this rank's random generators; returns the numbers.

        On another mesh than before, tensors are resharded and, unless its data ranks are the same, the generators are
        seeded anew from the step.
        Raises UserError when the checkpoint was made with another config or other data than `fresh` names.
        """
        state = TrainState(**json.loads((folder / "train_state.json").read_text()))
        _check_same("config", state.config_fingerprint, fresh.config_fingerprint, folder)
        _check_same("data", state.data_fingerprint, fresh.data_fingerprint, folder)
        tensors = _tensors(model, optimizer)
        dcp.load(tensors, checkpoint_id=folder / "tensors")
        set_state_dict(
            model,
            optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
            options=_TRAINED_ONLY,
        )
        self._restore_random(folder, state)
        return state

    def _restore_random(self, folder: Path, state: TrainState) -> None:
        """Ranks of one tensor-parallel group draw the same numbers, so one rank's state serves each of them."""
        data_size, left = divmod(len(list((folder / "random").iterdir())), state.tensor_size)
        if data_size == self._devices.data_size and not left:
            path = folder / "random" / f"rank-{self._devices.data_rank * state.tensor_size}.pt"
            random_state.restore(torch.load(path, weights_only=True))
        else:
            random_state.seed(self._seed, self._devices.data_rank, state.step)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer state by parameter name, as this rank's shards."""
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_TRAINED_ONLY)
    return {"model": model_state, "optimizer": optimizer_state}


def _check_same(what: str, saved: str, wanted: str, folder: Path) -> None:
    if saved != wanted:
        raise UserError(
            f"{folder} was made with another {what} than this run's (fingerprints {saved[:12]} and {wanted[:12]});"
            f" restore the {what} to resume, or delete {folder.parent} or choose another storage.root to start anew"
        )

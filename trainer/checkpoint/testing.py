"""A small model that learns, for tests of checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from finecut.trainer.checkpoint import location, manifest
from finecut.trainer.checkpoint.location import Folder
from finecut.trainer.checkpoint.parts import Part
from finecut.trainer.checkpoint.store import CheckpointStore, TrainState
from finecut.trainer.keeping import CheckpointConfig
from finecut.trainer.parallel.process_group import Devices


class Trial:
    """A model with its optimizer and its checkpoints; `size` is the width of its two matrices."""

    def __init__(
        self,
        devices: Devices,
        place: str,
        asynchronous: bool = True,
        size: int = 16,
        keep_last: int = 2,
        parts: dict[str, Part] | None = None,
        config_fingerprint: str = "config",
        code_version: str = "1",
        accepts_other_code: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(size, size), nn.Dropout(0.5), nn.Linear(size, size))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        config = CheckpointConfig(1, keep_last, None, asynchronous)
        self.store = CheckpointStore(
            location.at(place), config, seed=1, devices=devices, parts=parts, accepts_other_code=accepts_other_code
        )
        self.state = TrainState(config_fingerprint, "data", code_version)

    def train(self, steps: int = 1) -> None:
        """Takes optimizer steps on random input."""
        for _ in range(steps):
            self.model(torch.randn(4, self.model[0].in_features)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.step += 1

    def save(self) -> None:
        """Begins a checkpoint of what is there."""
        self.store.save(self.model, self.optimizer, self.state)

    def resume(self) -> list[str]:
        """Takes over the newest whole checkpoint; returns the sentences about torn ones."""
        folder, notes = self.store.newest()
        if folder is not None:
            self.state = self.store.load(folder, self.model, self.optimizer, self.state)
        return notes

    def weights(self) -> torch.Tensor:
        """A copy of all parameters, in one row."""
        return torch.cat([parameter.detach().flatten().clone() for parameter in self.model.parameters()])


def newest_whole(root: Path) -> tuple[str | None, list[str]]:
    """As `CheckpointStore.newest`, of one process."""
    place = Folder(root)
    return manifest.newest_whole(
        manifest.candidates(place), partial(manifest.read, place), partial(manifest.damage, place)
    )

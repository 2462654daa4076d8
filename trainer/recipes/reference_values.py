"""What the reference model says of all pairs, worked out once before training, so that it need not stay in memory.

    <stage>/reference-log-probabilities.npz    a row for each pair: example id, log p(chosen), log p(rejected)

A resumed run takes it over where model, data and number format are the same; else it is worked out anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from finecut.dataprep.shards import SplitReader
from finecut.proto.config import UserError
from finecut.proto.run import artifacts
from finecut.trainer.data import balance
from finecut.trainer.data.batches import Loader, MicroBatch
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.recipes.pairs import PairValues
from finecut.trainer.recipes.supervised import Setup

_FILE = "reference-log-probabilities.npz"
_FIELD = "dpo.precompute_reference"

Reference = Callable[[MicroBatch], PairValues]
"""Log-probabilities of the answers under the reference model, without gradients."""


@dataclasses.dataclass(frozen=True)
class StoredReference:
    """Looks pairs up by their example id. Arrays are [pairs], ids ascending."""

    example_id_N: np.ndarray
    chosen_N: np.ndarray
    rejected_N: np.ndarray

    def __call__(self, batch: MicroBatch) -> PairValues:
        """Of the micro-batch's pairs, on its device."""
        place_N = np.searchsorted(self.example_id_N, _example_ids(batch))
        device = batch.input_ids_BL.device
        chosen_N, rejected_N = (torch.from_numpy(x[place_N]).to(device) for x in (self.chosen_N, self.rejected_N))
        return PairValues(chosen_N, rejected_N)


def stored(make_reference: Callable[[], Reference], source: ModelSource, setup: Setup) -> StoredReference:
    """The values of all pairs of both splits. Collective.

    Raises UserError for data whose pairs have no ids, or are packed on the fly.

    Args:
      make_reference: Loads the reference; called only where nothing is stored yet.
      source: What it loads, which decides whether what is stored still holds.
    """
    path = setup.place.artifact.parent / _FILE
    key = _key(source, setup)
    found = setup.devices.from_main(_read(path, key) if setup.devices.is_main else None)
    if found is None:
        found = _compute(make_reference(), setup)
        if setup.devices.is_main:
            _write(path, key, found)
    return found


def _compute(reference: Reference, setup: Setup) -> StoredReference:
    ids, chosen, rejected = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for batch in _all_pairs(setup):
        values = reference(batch)
        ids.append(_example_ids(batch))
        chosen.append(values.chosen_N.float().cpu().numpy())
        rejected.append(values.rejected_N.float().cpu().numpy())
        if not ids[-1].all():
            raise UserError(f"{_FIELD}: {setup.place.data} does not name its pairs; prepare it again")
    shares: list[list[np.ndarray]] = [[]] * setup.devices.world_size
    dist.all_gather_object(shares, [np.concatenate(own) for own in (ids, chosen, rejected)])
    id_N, chosen_N, rejected_N = (np.concatenate(column) for column in zip(*shares, strict=True))
    id_N, first_N = np.unique(id_N, return_index=True)  # a pair that stands twice has the same values
    return StoredReference(id_N, chosen_N[first_N], rejected_N[first_N])


def _all_pairs(setup: Setup) -> Iterator[MicroBatch]:
    """This rank's part of every split, equally many micro-batches on all."""
    manifest = artifacts.read(setup.place.data)
    if manifest.data.HasField("packed") and not manifest.data.packed:
        raise UserError(
            f"{_FIELD}: {setup.place.data} is packed on the fly; prepare it with packing.mode: OFFLINE, or unset this"
        )
    devices = setup.devices
    for split in manifest.data.splits:
        reader = SplitReader(setup.place.data, split.name, verify=False)
        assignment = balance.assign_in_order(np.arange(len(reader)), devices.data_size, 1)
        yield from (batch.to(devices.device) for batch in Loader(reader, 1, devices).load(assignment))


def _example_ids(batch: MicroBatch) -> np.ndarray:
    """Of each pair, [N], in the order of PairValues."""
    is_chosen = np.arange(batch.example_ids_BD.shape[1]) % 2 == 0
    return batch.example_ids_BD[batch.has_document & is_chosen]


def _key(source: ModelSource, setup: Setup) -> str:
    """Equal where the reference's values would be."""
    digest = hashlib.sha256(f"{setup.data.fingerprint} {setup.precision.name}".encode())
    for folder in filter(None, (source.base, source.adapter)):
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> StoredReference | None:
    try:
        with np.load(path) as file:
            if str(file["key"]) == key:
                return StoredReference(file["example_id"], file["chosen"], file["rejected"])
    except (OSError, ValueError, KeyError, EOFError):  # none, or half of one
        pass
    return None


def _write(path: Path, key: str, found: StoredReference) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file, key=np.array(key), example_id=found.example_id_N, chosen=found.chosen_N, rejected=found.rejected_N
        )
    os.replace(partial, path)

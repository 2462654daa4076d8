"""Writes and reads the checkpoints of a run: sharded tensors, parts beside them, one JSON of plain numbers.

    step-00000100/
      tensors/                  model and optimizer, each rank its shards (torch.distributed.checkpoint)
      parts/random/rank-0.pt    random generators of one rank; other parts are the recipe's (see parts.py)
      train_state.json          step, loss scale, metrics, and what they belong to
      manifest.json             size and SHA-256 of all of it, written last

    save:  wait for the save before -> copy to host memory -> [in the background: write -> gather digests -> manifest
           -> prune]

Only what stands before the bracket holds the step up. Written at once, without a copy, unless the config says
`asynchronous`. Every method is collective; the background has a group of its own, so its collectives cannot meet those
of the step.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from finecut.proto.config import UserError
from finecut.trainer.checkpoint import manifest, tensor_files
from finecut.trainer.checkpoint.background import Background
from finecut.trainer.checkpoint.location import Location
from finecut.trainer.checkpoint.manifest import FileDigest
from finecut.trainer.checkpoint.parts import Part, RandomGenerators, SavedStates
from finecut.trainer.checkpoint.staging import Staging
from finecut.trainer.keeping import CheckpointConfig
from finecut.trainer.parallel.process_group import Devices

T = TypeVar("T")

# One, or one for each of several models, which are children of the module that is saved.
Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]

# Only what is trained: under LoRA the adapters, a thousandth of the model.
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
# A rank may wait for another one's upload to a slow store.
_GROUP_TIMEOUT = datetime.timedelta(hours=2)
# Files of a rank, where cores are free beside a GPU: one thread wrote and hashed 0.4 GB/s (docs/performance.md).
_FILES_BESIDE_GPU = 4
# Writes are repeated after these waits: stores answer "slow down", shared disks vanish for a moment.
_RETRY_WAITS_S = (1.0, 4.0)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, however often it was tried."""


@dataclasses.dataclass
class TrainState:
    """The plain numbers of a run after `step` steps, and what they belong to.

    `blocks` is the position in the data: blocks taken from the stream. `metrics` are those that the manifest of the
    finished stage carries.
    """

    config_fingerprint: str
    data_fingerprint: str
    code_version: str
    step: int = 0
    blocks: int = 0
    loss_scale: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one stage, in one place that every rank sees. `parts` are kept beside the tensors, by name."""

    def __init__(
        self,
        location: Location,
        config: CheckpointConfig,
        seed: int,
        devices: Devices,
        parts: Mapping[str, Part] | None = None,
        accepts_other_code: bool = False,
    ) -> None:
        self._location = location
        self._config = config
        self._accepts_other_code = accepts_other_code
        self._devices = devices
        generators = RandomGenerators(seed, devices)
        self._parts: dict[str, Part] = {"random": generators, **(parts or {})}
        self._staging = Staging(devices.device) if config.asynchronous else None
        self._background = Background("checkpoint")
        self._group = dist.new_group(backend="gloo", timeout=_GROUP_TIMEOUT)

    def due(self, step: int, last_step: int) -> bool:
        """Whether a checkpoint belongs after `step`: at every multiple, and at the end."""
        return step % self._config.every_steps == 0 or step == last_step

    def prepare(self, model: nn.Module, optimizer: Optimizers) -> None:
        """Makes the buffers of copies and touches them: the first save holds a step up no longer than others do."""
        if not self._staging:
            return
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        fresh = [one for one in optimizers if not one.state]
        self._staging.copy(_tensors(model, optimizer))
        for one in fresh:  # to make its state, torch takes a step of length 0, which must not count as one
            for values in one.state.values():
                values.update({name: _zero(value) for name, value in values.items()})

    def save(self, model: nn.Module, optimizer: Optimizers, state: TrainState) -> None:
        """Begins a checkpoint, which replaces those no longer kept; returns when the train state may change again.

        Raises CheckpointError when this one, or the one before, cannot be written.
        """
        self._background.wait()  # the buffers are free again
        tensors = _tensors(model, optimizer)
        content = _Content(
            tensors=self._staging.copy(tensors) if self._staging else tensors,
            parts={name: part.capture() for name, part in self._parts.items() if self._writes(part)},
            numbers=json.dumps(dataclasses.asdict(state), indent=1),
        )
        self._background.start(functools.partial(self._write, manifest.folder_of(state.step), content))
        if not self._staging:
            self._background.wait()

    def wait(self) -> None:
        """Returns when the last checkpoint counts. Raises CheckpointError when it could not be written."""
        self._background.wait()

    def newest(self) -> tuple[str | None, list[str]]:
        """The newest whole checkpoint, and a sentence for each newer one that is torn. Ranks share the reading."""
        main, location = self._devices.is_main, self._location

        def read(folder: str) -> tuple[manifest.Digests, str | None]:
            return self._from_main(manifest.read(location, folder) if main else ({}, None))

        def damage(folder: str, digests: manifest.Digests) -> str | None:
            found = self._gather(
                manifest.damage(location, folder, digests, self._devices.rank, self._devices.world_size)
            )
            return next((reason for reason in found if reason), None)

        return manifest.newest_whole(self._from_main(manifest.candidates(location) if main else []), read, damage)

    def load(self, folder: str, model: nn.Module, optimizer: Optimizers, fresh: TrainState) -> TrainState:
        """Restores model, optimizer and parts; returns the numbers.

        On another mesh than before, tensors are resharded and, unless its data ranks are the same, the generators are
        seeded anew from the step.
        Raises UserError when the checkpoint was made with another config, other data or other code than `fresh` names.
        """
        state = TrainState(**json.loads(self._location.read_text(f"{folder}/train_state.json")))
        self._check_same(folder, state, fresh)
        state.code_version = fresh.code_version
        tensors = _tensors(model, optimizer)
        tensor_files.load(tensors, self._location, f"{folder}/tensors", self._group)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
            options=_TRAINED_ONLY,
        )
        digests, _ = manifest.read(self._location, folder)
        for name, part in self._parts.items():
            paths = _part_paths(digests, name)
            part.restore(SavedStates(self._location, [f"{folder}/{path}" for path in paths]), state.step)
        return state

    def _writes(self, part: Part) -> bool:
        return part.every_rank or self._devices.is_main

    def _write(self, folder: str, content: _Content) -> None:
        """Writes a checkpoint to its end, and again where storage fails for a moment."""
        for wait_s in (*_RETRY_WAITS_S, None):
            try:
                self._write_once(folder, content)
                return
            except (Exception, CheckpointException) as error:  # torch's is a BaseException
                if wait_s is None:
                    sentence = f"checkpoint {folder} cannot be written to {self._location}: {_reason(error)}"
                    raise CheckpointError(sentence) from error
            time.sleep(wait_s)

    def _write_once(self, folder: str, content: _Content) -> None:
        if self._devices.is_main:
            self._alike(lambda: manifest.remove(self._location, folder))  # what a killed process left of this step
        else:
            self._alike(lambda: None)
        num_files = _FILES_BESIDE_GPU if self._devices.device.type == "cuda" else 1
        digests = tensor_files.save(content.tensors, self._location, f"{folder}/tensors", self._group, num_files)
        digests |= self._alike(lambda: self._write_files(folder, content))
        of_all = {path: digest for share in self._gather(digests) for path, digest in share.items()}
        self._alike(lambda: self._finish(folder, of_all) if self._devices.is_main else None)

    def _write_files(self, folder: str, content: _Content) -> dict[str, FileDigest]:
        files = {
            f"parts/{name}/rank-{self._devices.rank}.pt": _to_bytes(captured)
            for name, captured in content.parts.items()
        }
        if self._devices.is_main:
            files["train_state.json"] = content.numbers.encode()
        digests = {}
        for path, data in files.items():
            with self._location.create(f"{folder}/{path}") as file:
                file.write(data)
            digests[f"{folder}/{path}"] = manifest.digest_of(io.BytesIO(data))
        return digests

    def _finish(self, folder: str, digests: dict[str, FileDigest]) -> None:
        relative = {path.removeprefix(f"{folder}/"): digest for path, digest in digests.items()}
        manifest.finish(self._location, folder, relative)
        manifest.prune(self._location, self._config.keep_last, self._config.keep_every_steps)

    def _alike(self, work: Callable[[], T]) -> T:
        """Does `work`; where it fails on one rank, raises on all, so that all go on from the same place."""
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        errors = [each for each in self._gather(error) if each]
        if errors:
            raise CheckpointError(errors[0])
        return result  # type: ignore[return-value]

    def _gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self._devices.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _from_main(self, value: T) -> T:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _check_same(self, folder: str, found: TrainState, expected: TrainState) -> None:
        checked = {
            "config": (found.config_fingerprint, expected.config_fingerprint),
            "data": (found.data_fingerprint, expected.data_fingerprint),
        }
        different = [what for what, (one, other) in checked.items() if one != other]
        if different:
            raise UserError(
                f"{self._location}/{folder} was made with another {different[0]} than this run's, so training cannot go"
                " on from it; choose another job name, or delete the run's folder to start over"
            )
        if found.code_version != expected.code_version and not self._accepts_other_code:
            raise UserError(
                f"{self._location}/{folder} was made by code version {found.code_version} and this is"
                f" {expected.code_version}, so results may differ; run that version, or set accept_other_code=true"
            )


@dataclasses.dataclass(frozen=True)
class _Content:
    """What one rank writes."""

    tensors: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    numbers: str


def _reason(error: BaseException) -> str:
    """What went wrong, in a line; torch wraps it in tracebacks of all ranks."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = min(error.failures.items())
        return f"rank {rank}: {cause}"
    return str(error)


def _part_paths(digests: Mapping[str, FileDigest], name: str) -> list[str]:
    """Files of a part in the order of ranks."""
    paths = [path for path in digests if path.startswith(f"parts/{name}/")]
    return sorted(paths, key=lambda path: int(path.rpartition("-")[2].removesuffix(".pt")))


def _zero(value: Any) -> Any:
    """In place where it can be: buffers belong to the tensors that they copy."""
    return value.zero_() if isinstance(value, torch.Tensor) else type(value)(0)


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _tensors(model: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
    """Model and optimizer state by parameter name, as this rank's shards."""
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_TRAINED_ONLY)
    return {"model": model_state, "optimizer": optimizer_state}

"""The policy's weights on their way to the engines, and what was sent: whose samples those are is asked here.

    policy at version v --> WeightSync (all ranks) --> engines that confirm v by its checksums --> published[v]

Called on every rank alike; what was sent is known on rank 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch

from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rl.engines import EnginePlan
from finecut.trainer.rollout import checksums, provenance
from finecut.trainer.rollout.engine_group import RayEngines
from finecut.trainer.rollout.sample import Sample
from finecut.trainer.rollout.weight_source import DecoderSource
from finecut.trainer.rollout.weight_sync import WeightSync


class Publisher:
    """Sends versions of the policy, whole or as adapters alone, to engines that may be others than before.

    Attributes:
      source: The policy's tensors.
      checksums: Of each tensor, as the engines last confirmed them; on rank 0.
      published: Digest of all weights, by the versions that samples may still be of; on rank 0.
    """

    def __init__(self, source: DecoderSource, plan: EnginePlan, max_staleness: int, devices: Devices) -> None:
        self.source = source
        self.checksums: Mapping[str, int] = {}
        self.published: dict[int, str] = {}
        self._plan = plan
        self._max_staleness = max_staleness
        self._devices = devices
        self._sync: WeightSync | None = None
        self._met: RayEngines | None = None

    def prepare(self) -> None:
        """Works out what needs no engines, while they start. Collective."""
        if self._plan.sends_adapters:
            _ = self._base_checksums

    def send(self, version: int, engines: RayEngines | None) -> None:
        """Sends the present weights as `version` to these engines, which rank 0 knows. Collective."""
        if self._sync is None or self._are_new(engines):
            self._sync = WeightSync(self.source, engines, self._plan.engine.transfer_backend)
        if self._plan.sends_adapters:
            self.checksums = self._sync.send_adapter(version, self._base_checksums)
        else:
            self.checksums = self._sync.send(version)
        if self.checksums:
            self.published[version] = checksums.digest(self.checksums)
            oldest = version - self._max_staleness
            self.published = {version: digest for version, digest in self.published.items() if version >= oldest}

    def problem(self, samples: Sequence[Sample]) -> str | None:
        """What is wrong with samples of weights that were not sent, in a sentence, on every rank. Collective."""
        found: str | None = self._devices.from_main(provenance.problem(samples, self.published))
        return found

    @functools.cached_property
    def _base_checksums(self) -> dict[str, int]:
        """Of the model below the adapters, which never changes. Collective."""
        number_type = getattr(torch, self._plan.engine.number_type)
        return DecoderSource(self.source.model, number_type, merge_adapters=False).checksums()

    def _are_new(self, engines: RayEngines | None) -> bool:
        """Whether engines were restarted since they were met. Collective."""
        is_new = self._devices.is_main and self._met != engines
        self._met = engines
        return bool(self._devices.from_main(is_new))

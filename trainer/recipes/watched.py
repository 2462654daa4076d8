"""An objective that passes on to the recipe's, and remembers batches and gradients, and finds what is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finecut.dataprep.documents import show_example_id
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.metrics import anomalies, flops, gradients, non_finite
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.objective import Losses, Objective


class Watched:
    """One model's steps on one rank. Reads nothing from the device but in steps with details.

    Attributes:
      batches: Of the training step; those of all minibatches and passes.
      norms: Of the gradients by block, where the step has details.
      examples: Names of what the batches were made from. None: the batches know.
    """

    _objective: Objective

    def __init__(self, model: Decoder, devices: Devices, folder: Path) -> None:
        """`folder`: the stage's, for what is out of the ordinary."""
        self._model, self._devices, self._folder = model, devices, folder
        self.examples: list[str] | None = None
        self.batches: list[MicroBatch] = []
        self.norms: dict[str, float] = {}
        self._latest: list[MicroBatch] = []  # of the optimizer step at hand
        self._loss_scale = 1.0
        self._is_detailed = False

    def begin(self, is_detailed: bool) -> None:
        """A training step begins."""
        self.batches, self.norms, self._is_detailed = [], {}, is_detailed

    def around(self, objective: Objective, loss_scale: float) -> Watched:
        """An optimizer step with this objective begins."""
        self._objective, self._loss_scale, self._latest = objective, loss_scale, []
        return self

    # The objective's methods.

    def num_units(self, batch: MicroBatch) -> int:
        """The recipe's."""
        return self._objective.num_units(batch)

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The recipe's; remembers the batch."""
        if model.training:
            self.batches.append(batch)
            self._latest.append(batch)
        return self._objective.losses(model, batch, gradient_scale)

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """The recipe's."""
        return self._objective.metrics(sums, num_units)

    def resumed(self, step: int) -> None:
        """The recipe's."""
        self._objective.resumed(step)

    def step_done(self, step: int) -> None:
        """The recipe's; in a step with details, the norms of the gradients that are there now."""
        self._objective.step_done(step)
        if self._is_detailed:
            self.norms = gradients.block_norms(self._model, self._loss_scale)

    def before_checkpoint(self, step: int) -> None:
        """The recipe's."""
        self._objective.before_checkpoint(step)

    # What was seen.

    def flops(self) -> float:
        """Of this rank's share of the step."""
        model = self._model
        lengths = [length for batch in self.batches for length in batch.document_lengths.tolist()]
        trained = sum(batch.tokens.trained for batch in self.batches)
        outputs = model.num_outputs if model.output_head else None
        return flops.step_flops(model.config, lengths, trained, model.lora, outputs) / self._devices.tensor_size

    def num_documents(self) -> int:
        """Of this rank's share of the step."""
        return sum(len(batch.document_lengths) for batch in self.batches)

    def source(self, step: int) -> str:
        """Runs the batch again to find the first module that is not finite; keeps its examples. Collective."""
        batches = list(self._latest)
        kept = self.keep_examples({"step": step, "not_finite": True})
        is_finite = True

        def run_again() -> None:
            nonlocal is_finite
            for batch in batches:
                loss = self._objective.losses(self._model, batch, 1.0).loss
                is_finite = is_finite and bool(torch.isfinite(loss))
                loss.backward()

        try:
            found = non_finite.first_source(self._model, run_again)
        except RuntimeError as error:  # the search must not hide what it was for
            found = f"the search for its module failed: {str(error).splitlines()[0]}"
        if found == non_finite.NOTHING and not all(self._devices.gather_objects(is_finite)):
            found = "every module's output is finite and the loss is not: look at its targets, weights and rewards"
        return f"{found}; the batch's examples are in {kept}"

    def keep_examples(self, entry: Mapping[str, object]) -> str:
        """Where the examples of this step's batch, of all ranks, are recorded. Collective."""
        devices, examples = self._devices, self.examples
        if examples is None:
            own = [int(i) for batch in self.batches for i in batch.example_ids_BD[batch.has_document] if i]
            shares = devices.gather_objects(own if devices.rank % devices.tensor_size == 0 else [])
            examples = [show_example_id(number) for share in shares for number in share]
        return anomalies.record(self._folder, entry, examples) if devices.is_main else ""

"""Holds our decoder to `transformers`: the same weights must give the same logits and gradients, and survive an export.

    bazel run //trainer/models:verify -- --model=FOLDER [--seed=0] [--gradients=true|false]

Random tokens in documents of uneven length run packed into one row in our decoder and one by one in `transformers`,
both in FP32. The model is then written by us and loaded by `transformers` again. Prints a table of what was compared.
Exit status: 0 equal, 1 not equal, 2 no such model. A family is listed as supported only when this passes.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from absl import app, flags
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.gradients import compare_gradients
from finecut.trainer.models.huggingface import ModelSource, locate_model, save_model
from finecut.trainer.models.logits import TOLERANCE, compare, load_decoder, packed_logits
from finecut.trainer.models.reference import load_reference, reference_logits

_MODEL = flags.DEFINE_string("model", None, "Folder of the model, or of an adapter.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random tokens.")
_GRADIENTS = flags.DEFINE_bool(
    "gradients", None, "Compare gradients, which holds both models at once. Unset: up to a billion parameters."
)

# Lengths of the documents: one token, short, beyond a block of 128, beyond 256 (where BF16 loses whole positions).
LENGTHS = (1, 7, 200, 2, 300, 33)
_MAX_GRADIENT_PARAMETERS = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison. `difference` is the largest absolute one, `largest` the largest value of the reference."""

    name: str
    difference: float
    largest: float
    is_equal: bool


def random_documents(config: DecoderConfig, seed: int) -> list[Tensor]:
    """Token ids, uniformly over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (min(length, config.max_positions) for length in LENGTHS)
    return [torch.randint(config.vocabulary_size, (length,), generator=generator) for length in lengths]


def verify(folder: Path, seed: int, gradients: bool | None = None) -> list[Check]:
    """Compares the two, one after the other where gradients are not asked for. Raises UserError when there is no model.

    Args:
      gradients: compare them as well. None: if the model is small. An adapter's are not compared.
    """
    source = locate_model(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    documents = random_documents(DecoderConfig.from_folder(source.base), seed)
    return list(_checks(source, documents, device, gradients))


def _checks(source: ModelSource, documents: Sequence[Tensor], device: str, gradients: bool | None) -> Iterator[Check]:
    model = load_decoder(source, device)
    ours = packed_logits(model, documents)
    is_small = sum(parameter.numel() for parameter in model.parameters()) <= _MAX_GRADIENT_PARAMETERS
    if source.adapter is None and (is_small if gradients is None else gradients):
        found = compare_gradients(model, load_reference(source.base, device), documents)
        yield Check("gradients of packed documents", found.difference, found.largest, found.is_equal)
    with tempfile.TemporaryDirectory() as exported:
        save_model(model, Path(exported), source.base, torch.float32)
        del model
        theirs = reference_logits(load_reference(source.base, device, source.adapter), documents)
        yield _logits("logits of packed documents", ours, theirs)
        again = reference_logits(load_reference(Path(exported), device), documents)
        yield _logits("logits of the export, reloaded", again, theirs)


def _logits(name: str, ours: Sequence[Tensor], reference: Sequence[Tensor]) -> Check:
    agreement = compare(ours, reference)
    return Check(name, agreement.max_difference, agreement.max_logit, agreement.is_equal)


def table(checks: Sequence[Check]) -> str:
    """What was compared, a line each."""
    lines = [f"{'compared with transformers':34}{'max difference':>16}{'largest value':>16}  result"]
    for check in checks:
        result = "equal" if check.is_equal else "NOT EQUAL"
        lines.append(f"{check.name:34}{check.difference:>16.2e}{check.largest:>16.2e}  {result}")
    return "\n".join([*lines, f"equal: the difference is at most {TOLERANCE:g} of the largest value"])


def main(argv: Sequence[str]) -> int:
    """Parses, verifies, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    try:
        checks = verify(Path(_MODEL.value), _SEED.value, _GRADIENTS.value)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(checks))
    return 0 if all(check.is_equal for check in checks) else 1


if __name__ == "__main__":
    app.run(main)

"""Holds our decoder to `transformers`: the same weights must give the same logits.

    bazel run //trainer/models:verify -- --model=FOLDER [--seed=0]

Random tokens in documents of uneven length run packed into one row in our decoder and one by one in `transformers`,
both in FP32. Prints the largest difference. Exit status: 0 equal, 1 not equal, 2 no such model. A family is listed as
supported only when this passes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from absl import app, flags
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.models.logits import Agreement, compare, load_decoder, packed_logits
from finecut.trainer.models.reference import load_reference, reference_logits

_MODEL = flags.DEFINE_string("model", None, "Folder of the model, or of an adapter.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random tokens.")

# Lengths of the documents: one token, short, beyond a block of 128, beyond 256 (where BF16 loses whole positions).
LENGTHS = (1, 7, 200, 2, 300, 33)


def random_documents(config: DecoderConfig, seed: int) -> list[Tensor]:
    """Token ids, uniformly over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (min(length, config.max_positions) for length in LENGTHS)
    return [torch.randint(config.vocabulary_size, (length,), generator=generator) for length in lengths]


def verify(folder: Path, seed: int) -> Agreement:
    """Compares the two; one model is in memory at a time. Raises UserError when there is no model."""
    source = locate_model(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_decoder(source, device)
    documents = random_documents(model.config, seed)
    ours = packed_logits(model, documents)
    del model
    reference = load_reference(source.base, device, source.adapter)
    return compare(ours, reference_logits(reference, documents))


def main(argv: Sequence[str]) -> int:
    """Parses, verifies, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    try:
        agreement = verify(Path(_MODEL.value), _SEED.value)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'equal' if agreement.is_equal else 'NOT EQUAL'}: {agreement}")
    return 0 if agreement.is_equal else 1


if __name__ == "__main__":
    app.run(main)

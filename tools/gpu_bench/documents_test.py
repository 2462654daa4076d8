"""Batches of the bench are such as the trainer's data gives."""

import dataclasses

import numpy as np
import pytest
import torch

from finecut.tools.gpu_bench.cases import CASES, Case
from finecut.tools.gpu_bench.documents import make_batch
from finecut.trainer.data.batches import IGNORED


def small(case: Case) -> Case:
    return dataclasses.replace(case, block=256, median=50 if case.median else None, micro_blocks=3)


@pytest.mark.parametrize("case", [small(case) for case in CASES], ids=lambda case: case.name)
def test_targets_are_the_next_tokens_of_their_documents(case):
    made = make_batch(case, np.random.default_rng(0), torch.device("cpu"))
    batch = made.batch
    for ids, positions, documents, targets in zip(
        batch.input_ids_BL, batch.position_ids_BL, batch.document_ids_BL, batch.targets_BL, strict=True
    ):
        for t in range(case.block):
            inside = t + 1 < case.block and documents[t] >= 0 and documents[t + 1] == documents[t]
            assert targets[t] == (ids[t + 1] if inside else IGNORED)
            assert not inside or positions[t + 1] == positions[t] + 1
    assert batch.tokens.trained == (batch.targets_BL != IGNORED).sum()
    assert sum(made.lengths) == batch.tokens.useful == (batch.document_ids_BL >= 0).sum()


def test_packed_rows_are_full_and_padded_rows_hold_one_document():
    packed = Case("packed", CASES[0].shape, block=256, median=20)
    full = make_batch(packed, np.random.default_rng(0), torch.device("cpu"))
    assert full.batch.tokens.useful == 256 and len(full.lengths) > 2
    padded = dataclasses.replace(packed, padded=True, micro_blocks=5)
    assert len(make_batch(padded, np.random.default_rng(0), torch.device("cpu")).lengths) == 5

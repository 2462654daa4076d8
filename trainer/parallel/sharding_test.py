"""Layouts that do not fit the number of ranks are refused with the way out."""

import dataclasses

import pytest

from finecut.proto import training_pb2
from finecut.proto.config import UserError
from finecut.trainer.config import TrainingConfig
from finecut.trainer.parallel.sharding import check_layout


def layout(**fields: int | None) -> TrainingConfig:
    training = TrainingConfig.from_proto(training_pb2.TrainingConfig())
    return dataclasses.replace(training, **({"global_blocks": 8, "micro_blocks": 1} | fields))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_accepts_what_divides(world_size):
    check_layout(layout(), world_size)
    check_layout(layout(shard_size=world_size), world_size)


def test_refuses_a_shard_size_that_is_not_the_number_of_ranks():
    with pytest.raises(UserError, match=r"parallelism.shard_size: 4 is not the number of ranks, 2; leave it unset"):
        check_layout(layout(shard_size=4), 2)


def test_refuses_a_batch_that_does_not_divide_and_names_the_nearest_that_does():
    with pytest.raises(UserError, match=r"batch.global_blocks: 8 is not a multiple of 6 .*; use 6$"):
        check_layout(layout(micro_blocks=2), 3)

"""A layout that does not fit the ranks or the model is refused before anything is built."""

import dataclasses

import pytest

from finecut.proto import training_pb2
from finecut.proto.config import ConfigError
from finecut.trainer.config import ParallelismConfig, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.parallel.sharding import check_layout
from finecut.trainer.testing import write_tiny_llama


def layout(parallelism: ParallelismConfig, **fields: int) -> TrainingConfig:
    training = TrainingConfig.from_proto(training_pb2.TrainingConfig())
    return dataclasses.replace(training, **({"global_blocks": 8, "micro_blocks": 1} | fields), parallelism=parallelism)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_accepts_what_divides(world_size):
    check_layout(layout(ParallelismConfig()), None, world_size)
    check_layout(layout(ParallelismConfig(shard_size=world_size)), None, world_size)


def test_refuses_what_does_not_fit_ranks_model_and_batch_all_at_once(tmp_path):
    model = DecoderConfig.from_folder(write_tiny_llama(tmp_path))
    with pytest.raises(ConfigError) as caught:
        check_layout(layout(ParallelismConfig(shard_size=4, tensor_size=3), micro_blocks=3), model, 6)
    assert [problem.path for problem in caught.value.problems] == [
        "training.parallelism.shard_size",
        "training.parallelism.tensor_parallel_size",
        "training.batch.global_blocks",
    ]
    assert "3 does not divide the model's 4 heads" in str(caught.value)

"""What is proposed fits, is allowed, and is the fastest; gpus are told apart by their drivers' names."""

from __future__ import annotations

import dataclasses

import pytest

from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.planning import gpus, memory, proposals
from finecut.trainer.planning.known_shapes import LLAMA3_8B
from finecut.trainer.planning.workload import Layout, Recompute, Workload


def work(gpu: str, **changes: object) -> Workload:
    fields = {"config": LLAMA3_8B, "lora": None, "block_size": 8_192, "global_blocks": 16, "compiled": True}
    return Workload(device=gpus.by_name(gpu), **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("gpu", [gpu.name for gpu in gpus.GPUS])
@pytest.mark.parametrize("world_size", [1, 2, 8, 16])
def test_what_is_proposed_fits_and_is_allowed(gpu: str, world_size: int) -> None:
    asked = work(gpu)
    proposal = proposals.best(asked, world_size, 8)
    if proposal is None:
        smallest = Layout(world_size, recompute=Recompute.FULL, offload_optimizer=True)
        assert memory.plan(asked, smallest).total > asked.device.memory
        return
    assert proposal.memory.total <= asked.device.memory
    assert proposal.layout.world_size == world_size
    assert proposals.is_allowed(asked, proposal.layout)


def test_memory_forces_recomputation_only_where_it_is_short() -> None:
    roomy, tight = (proposals.best(work(gpu), 8, 8) for gpu in ("H200", "L40S"))
    assert roomy and roomy.layout.recompute is Recompute.OFF and not roomy.layout.offload_optimizer
    assert tight and tight.layout.recompute is Recompute.FULL


def test_eight_billion_do_not_fit_one_gpu_and_as_many_as_do_are_named() -> None:
    asked = work("L40S")
    assert proposals.best(asked, 1, 8) is None
    found = proposals.fewest_ranks(asked, 1, 8)
    assert found is not None
    count, proposal = found
    assert count in (2, 4) and proposal.layout.world_size == count


def test_what_fits_by_offloading_alone_is_offloaded() -> None:
    found = proposals.best(work("H100"), 1, 1)
    assert found is not None and found.layout.offload_optimizer


def test_adapters_fit_one_gpu() -> None:
    found = proposals.best(work("H100", lora=LoraConfig(rank=16), block_size=4_096), 1, 1)
    assert found is not None and found.layout.recompute is Recompute.OFF


def test_no_layout_where_the_batch_cannot_be_shared() -> None:
    assert (
        proposals.best(work("H200", global_blocks=3, config=dataclasses.replace(LLAMA3_8B, num_heads=31 * 8)), 7, 8)
        is None
    )


def test_a_proposal_reads_as_fields_of_a_job() -> None:
    layout = Layout(4, 2, 2, offload_optimizer=True, recompute=Recompute.FULL, micro_blocks=2)
    assert proposals.describe(layout) == (
        "parallelism { shard_size: 4 replicate_size: 2 tensor_parallel_size: 2 offload_optimizer: true }"
        " activation_checkpointing: FULL batch { micro_blocks: 2 }"
    )


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_drivers_names(driver: str, name: str | None) -> None:
    found = gpus.of_driver_name(driver)
    assert (found.name if found else None) == name

"""What is planned for activations is what autograd keeps; weights, gradients and the optimizer are counted exactly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from finecut.trainer.config import ActivationCheckpointing
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import BatchContext, Decoder
from finecut.trainer.models.lora import apply_lora
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.models.rope_config import Rope
from finecut.trainer.parallel.activation_checkpointing import checkpoint_layers
from finecut.trainer.parallel.compilation import compile_layers
from finecut.trainer.planning import gpus, memory, shapes
from finecut.trainer.planning.workload import Frozen, Layout, Recompute, Workload

H100 = gpus.by_name("H100")
assert H100 is not None
CONFIG = DecoderConfig(
    family="qwen3",
    vocabulary_size=512,
    hidden_size=128,
    intermediate_size=352,
    num_layers=4,
    num_heads=6,
    num_key_heads=2,
    head_size=32,
    max_positions=512,
    norm_epsilon=1e-6,
    tied_embeddings=True,
    rope=Rope(),
    query_key_norm=True,
)
LENGTH = 256
EVERYTHING = shapes.count(CONFIG).total


def work(**changes: object) -> Workload:
    fields = {"config": CONFIG, "lora": None, "block_size": LENGTH, "global_blocks": 4, "device": H100}
    return Workload(**(fields | changes))  # type: ignore[arg-type]


def kept_by_a_layer(work: Workload, mode: ActivationCheckpointing) -> float:
    """Numbers a token that one layer's forward pass keeps for its backward pass, in elements of its type."""
    dtype = {2: torch.bfloat16, 4: torch.float32}[work.number_bytes]
    model = Decoder(work.config)
    if work.lora:
        apply_lora(model, work.lora)
    model.to(dtype)
    if work.compiled:
        compile_layers(model.layers, torch.device("cpu"))
    checkpoint_layers(model.layers, mode)
    ids_BL = torch.arange(LENGTH)[None]
    context = BatchContext.of(work.config, ids_BL, torch.zeros_like(ids_BL))
    others = [*model.parameters(), context.rotation.cos, context.rotation.sin]
    own = {tensor.untyped_storage().data_ptr() for tensor in others}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_BLD = torch.randn(1, LENGTH, work.config.hidden_size, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.layers[1](x_BLD * 1, context)
    return sum(kept.values()) / LENGTH / work.number_bytes


CASES = {
    "all parameters": {},
    "without norms of queries": {"config": dataclasses.replace(CONFIG, query_key_norm=False)},
    "adapters": {"lora": LoraConfig(rank=4)},
    "norms after": {"config": dataclasses.replace(CONFIG, norms_after=True)},
    "fp32": {"number_bytes": 4},
    "compiled": {"compiled": True},
    "compiled, adapters": {"compiled": True, "lora": LoraConfig(rank=4)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_keeps_what_is_planned(case: str) -> None:
    asked = work(**CASES[case])
    torch._dynamo.reset()
    measured = kept_by_a_layer(asked, ActivationCheckpointing.OFF)
    # Attention on a CPU lays its result out once more for the product after it; kernels of GPUs do not.
    measured -= CONFIG.num_heads * CONFIG.head_size
    assert memory._kept_of_layer(asked, Layout(), 1) == pytest.approx(measured, rel=0.02)


def test_recomputed_layers_keep_their_input() -> None:
    kept = kept_by_a_layer(work(), ActivationCheckpointing.FULL)
    assert kept == CONFIG.hidden_size
    off, full = (memory.activation_bytes(work(), Layout(recompute=mode)) for mode in (Recompute.OFF, Recompute.FULL))
    one_layer = memory._kept_of_layer(work(), Layout(), 1)
    assert off - full == LENGTH * 2 * (3 * one_layer - 4 * CONFIG.hidden_size)


def test_weights_gradients_and_optimizer_are_exact() -> None:
    alone = memory.plan(work(), Layout())
    assert (alone.weights, alone.gradients, alone.optimizer) == (
        4 * EVERYTHING,
        4 * EVERYTHING,
        8 * EVERYTHING,
    )
    shared = memory.plan(work(), Layout(shard_size=4))
    assert (shared.weights, shared.optimizer) == (EVERYTHING, 2 * EVERYTHING)
    copies = memory.plan(work(), Layout(shard_size=2, replicate_size=2))
    assert copies.weights == 2 * EVERYTHING
    assert memory.plan(work(), Layout(offload_optimizer=True)).optimizer == 0


def test_adapters_freeze_the_rest_in_the_type_of_computing() -> None:
    lora = LoraConfig(rank=4)
    trained = shapes.count(CONFIG, lora).trained
    planned = memory.plan(work(lora=lora), Layout())
    assert planned.weights == 2 * EVERYTHING + 4 * trained
    assert planned.optimizer == 8 * trained


def test_a_step_of_one_micro_batch_holds_no_gradients_while_it_goes_forward() -> None:
    long = work(global_blocks=1, block_size=64 * LENGTH)
    assert memory.plan(long, Layout()).gradients == 0
    assert memory.plan(dataclasses.replace(long, global_blocks=2), Layout()).gradients == 4 * EVERYTHING


def test_a_frozen_model_takes_its_weights_and_more_with_its_tokens() -> None:
    beside = (Frozen("reference", CONFIG),)
    small = memory.plan(work(frozen=beside), Layout()).frozen
    large = memory.plan(work(frozen=beside, block_size=2 * LENGTH), Layout()).frozen
    assert 2 * EVERYTHING < small < large


def test_logits_exist_a_chunk_at_a_time() -> None:
    head = 512 * CONFIG.hidden_size * 2
    assert memory.logits_bytes(work(loss_chunk_tokens=64), Layout()) == 64 * 512 * 2 + head
    assert memory.logits_bytes(work(), Layout()) == LENGTH * 512 * 2 + head
    assert memory.logits_bytes(work(num_outputs=1), Layout()) == 0


def test_parts_add_up() -> None:
    planned = memory.plan(work(frozen=(Frozen("reference", CONFIG),)), Layout(shard_size=2))
    assert planned.total == sum(planned.parts().values()) == planned.allocated + planned.reserve

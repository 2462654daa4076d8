"""Bytes that one rank holds when it holds most, by kind. docs/planner.md has each formula's error.

Most is held at the end of a forward pass (activations and logits, and the gradients of micro-batches before it), or at
the end of a step (gradients of everything, no activations).

Symbols: D hidden size, Q and G widths of queries and keys, I intermediate size, H heads, T tokens of a micro-batch.
"""

from __future__ import annotations

import dataclasses

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.planning import shapes
from finecut.trainer.planning.shapes import Parameters, widths
from finecut.trainer.planning.workload import Layout, Recompute, Workload

FP32_BYTES = 4
_GIB = 2**30
# Of a GPU's memory: below it, one rank keeps trained weights gathered; ranks add up whole gradients. See
# trainer/parallel/gathering.py, which takes both from here.
GATHERED_SHARE = 1 / 8
# Logits of a chunk when the job names no number of tokens (trainer/ops/head.py).
_LOGITS_BYTES = _GIB
_MAX_ROUNDINGS = 16  # chunks whose weight gradients are added up in 16 bits (trainer/ops/cross_entropy.py)
# What is not the allocator's: CUDA's context with its kernels, as nvidia-smi shows it on H100s; NCCL's buffers, 2 MB a
# channel and peer and their graphs, rounded up; and what lies between blocks.
_CONTEXT_BYTES = int(0.6 * _GIB)
_NCCL_BYTES = int(0.5 * _GIB)
_FRAGMENTATION = 0.03


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one rank. All but `reserve` add up to what the allocator has handed out at its peak.

    Attributes:
      weights: The rank's share, in FP32 where trained, else in the type of computing.
      gathered: Units gathered for computing.
      exchange: Buffers of the exchange of gradients.
      frozen: Models beside the trained one, with what their forward passes take.
      cache: Keys and values, and weights, of engines that share the GPU.
      reserve: The context, NCCL, and what fragments.
    """

    weights: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    exchange: int = 0
    frozen: int = 0
    cache: int = 0
    reserve: int = 0

    @property
    def allocated(self) -> int:
        """At the peak, as torch.cuda.max_memory_allocated counts it."""
        return sum(self.parts().values()) - self.reserve

    @property
    def total(self) -> int:
        """What the device must have."""
        return self.allocated + self.reserve

    def parts(self) -> dict[str, int]:
        """By kind, those that are something."""
        return {name: size for name, size in dataclasses.asdict(self).items() if size}


def plan(work: Workload, layout: Layout) -> Memory:
    """What training takes on each rank."""
    counted = shapes.count(work.config, work.lora, work.num_outputs)
    ranks = layout.shard_size * layout.tensor_size
    weights = (FP32_BYTES * counted.trained + work.number_bytes * counted.frozen) // ranks
    optimizer = 0 if layout.offload_optimizer else 2 * FP32_BYTES * counted.trained // ranks
    frozen = sum(_frozen(work, layout, shapes.count(f.config, None, f.num_outputs), f.config) for f in work.frozen)
    gathered = _gathered(work, layout, counted)
    in_pass, at_end, exchange = _gradients(work, layout, counted)
    activations = activation_bytes(work, layout)
    head = logits_bytes(work, layout)
    forward = Memory(weights, gathered, in_pass, optimizer, activations, head, exchange, frozen)
    end = Memory(weights, gathered, at_end, optimizer, 0, 0, exchange, frozen)
    peak = max(forward, end, key=lambda memory: memory.allocated)
    return dataclasses.replace(peak, reserve=_reserve(work, layout, peak.allocated))


def keeps_gathered(trained: int, number_bytes: int, device_memory: int) -> bool:
    """Whether a rank that is alone keeps its trained weights gathered throughout a step."""
    return number_bytes * trained < GATHERED_SHARE * device_memory


def adds_up_whole_gradients(trained: int, device_memory: int) -> bool:
    """Whether ranks exchange gradients once a step only, and hold whole ones until then."""
    return FP32_BYTES * trained <= GATHERED_SHARE * device_memory


def _gathered(work: Workload, layout: Layout, counted: Parameters) -> int:
    """The root unit for the whole pass, a layer, and the one that is fetched ahead."""
    two_layers = sum(sorted(counted.layers)[-2:])
    if layout.world_size > 1:
        return work.number_bytes * (counted.outer + two_layers) // layout.tensor_size
    if work.device.is_gpu and keeps_gathered(counted.trained, work.number_bytes, work.device.memory):
        return work.number_bytes * counted.trained
    # Frozen ones are held as they are.
    share = counted.trained / counted.total
    return int(work.number_bytes * share * (counted.outer + two_layers))


def _gradients(work: Workload, layout: Layout, counted: Parameters) -> tuple[int, int, int]:
    """While a forward pass ends, when the step ends, and the buffers of their exchange."""
    own = FP32_BYTES * counted.trained // (layout.shard_size * layout.tensor_size)
    whole = work.gradient_bytes * counted.trained // layout.tensor_size
    adds_up = work.micro_batches(layout) > 1
    if layout.world_size == 1:
        return (whole if adds_up else 0), own, 0
    if not work.device.is_gpu or adds_up_whole_gradients(counted.trained, work.device.memory):
        return (whole if adds_up else 0), (whole if adds_up else own), 0
    # The root unit's whole gradient waits for the next micro-batch's first exchange.
    is_trained = work.lora is None
    root = work.gradient_bytes * counted.outer * is_trained // layout.tensor_size
    return (own if adds_up else 0), own, root if adds_up else 0


def activation_bytes(work: Workload, layout: Layout) -> int:
    """What the forward pass of a micro-batch keeps for the backward pass; with FULL, a layer's of its own, too."""
    config, tokens = work.config, layout.micro_blocks * work.block_size
    layers = [_kept_of_layer(work, layout, layer) for layer in range(config.num_layers)]
    match layout.recompute:
        case Recompute.FULL:
            kept = config.num_layers * config.hidden_size + max(layers)
        case Recompute.SELECTIVE:
            kept = sum(_products_of_layer(config, layout, i) for i in range(config.num_layers)) + max(layers)
        case _:
            kept = sum(layers)
    # The final norm's input in FP32, its output before and after its weight, and the gradient of that.
    kept += config.hidden_size * (FP32_BYTES // work.number_bytes + 3)
    return tokens * kept * work.number_bytes


def _kept_of_layer(work: Workload, layout: Layout, layer: int) -> int:
    """Numbers a token that a layer keeps, in elements of the type of computing.

    As the saved tensors of both kinds of layer are on a CPU, in BF16 and FP32 (memory_test.py).
    """
    config, split = work.config, layout.tensor_size
    D, (Q, G) = config.hidden_size, widths(config)
    wide = FP32_BYTES // work.number_bytes
    after = 2 if config.norms_after else 0
    is_trained = work.lora is None
    qk_norm = 2 if config.query_key_norm else 0
    attention = (2 * Q + 2 * G) // split  # rotated queries and keys, values, the result
    inner, copies = _feed_forward(config, layer)
    if work.compiled:
        # Each norm's input and output, in the type of computing; the rest is computed again from them.
        norms = (4 + after) * D + (Q + G) // split * bool(qk_norm)
        feed_forward = 3 * inner // split  # gate, up, their product
    else:
        # A norm keeps its input in FP32, the normalised one where its weight is trained, and what a product takes.
        norms = 2 * D * (wide + 1 + is_trained) + after * D * (wide + is_trained)
        norms += (Q + G) // split * (wide + is_trained) * bool(qk_norm)
        feed_forward = 4 * inner // split  # gate, its activation, up, their product
    statistics = wide * (
        2 + after + (config.num_heads + bool(qk_norm) * (config.num_heads + config.num_key_heads)) // split
    )
    return norms + attention + feed_forward + copies + statistics + _kept_of_adapters(work, layout)


def _feed_forward(config: DecoderConfig, layer: int) -> tuple[int, int]:
    """Numbers a token between up and down, and those of inputs and outputs copied for each chosen expert."""
    if config.experts is None or not config.has_experts(layer):
        return config.intermediate_size, 0
    chosen = config.experts.chosen
    return chosen * config.experts.intermediate_size, chosen * (2 * config.hidden_size + 2) + config.experts.count


def _kept_of_adapters(work: Workload, layout: Layout) -> int:
    """What low-rank products keep; with dropout their own inputs and masks (a byte), too."""
    if work.lora is None:
        return 0
    lora = work.lora.for_model(has_experts=work.config.experts is not None)
    kept = lora.rank * len(lora.targets)
    if work.has_dropout:
        D, (Q, _), I = work.config.hidden_size, widths(work.config), work.config.intermediate_size  # noqa: E741
        inputs = {"o_proj": Q // layout.tensor_size, "down_proj": I // layout.tensor_size}
        kept += sum(inputs.get(target, D) * (work.number_bytes + 1) // work.number_bytes for target in lora.targets)
    return kept


def _products_of_layer(config: DecoderConfig, layout: Layout, layer: int) -> int:
    """Numbers a token that SELECTIVE keeps: the layer's input, and the results of products and of attention."""
    D, (Q, G) = config.hidden_size, widths(config)
    inner, copies = _feed_forward(config, layer)
    return 3 * D + (2 * Q + 2 * G + 2 * inner) // layout.tensor_size + copies


def logits_bytes(work: Workload, layout: Layout) -> int:
    """Logits of a chunk, in whose place their slope is written, and the gradient of the head's weight."""
    if work.num_outputs == 1:
        return 0
    rows = (work.num_outputs or work.config.padded_vocabulary_size) // layout.tensor_size
    tokens = max(1, int(layout.micro_blocks * work.block_size * work.trained_share))
    chunk = work.loss_chunk_tokens or max(128, _LOGITS_BYTES // (rows * work.number_bytes) // 128 * 128)
    # On a CPU plain torch works on copies in FP32.
    copies = 1 if work.device.is_gpu else 3
    logits = copies * min(chunk, tokens) * rows * work.number_bytes
    if work.lora is not None and work.num_outputs is None:
        return logits
    is_long = -(-tokens // chunk) > _MAX_ROUNDINGS
    return logits + rows * work.config.hidden_size * (FP32_BYTES if is_long else work.number_bytes)


def _frozen(work: Workload, layout: Layout, counted: Parameters, config: DecoderConfig) -> int:
    """Weights of a model that only runs forward, the units gathered for it, and one layer's numbers."""
    ranks = layout.shard_size * layout.tensor_size
    gathered = (counted.outer + 2 * max(counted.layers)) // layout.tensor_size if layout.world_size > 1 else 0
    Q, G = widths(config)
    passing = 4 * config.hidden_size + (2 * Q + 2 * G + 3 * config.intermediate_size) // layout.tensor_size
    tokens = layout.micro_blocks * work.block_size
    return work.number_bytes * (counted.total // ranks + gathered + tokens * passing)


def _reserve(work: Workload, layout: Layout, allocated: int) -> int:
    if not work.device.is_gpu:
        return int(_FRAGMENTATION * allocated) + _GIB  # Python with torch
    return _CONTEXT_BYTES + _NCCL_BYTES * (layout.world_size > 1) + int(_FRAGMENTATION * allocated)

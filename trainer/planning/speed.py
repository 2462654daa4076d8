"""How long a step takes. Rates are shares of the device's peaks, from measurements; docs/planner.md has the errors.

A micro-batch takes the sum of its parts, or what the host needs to start them; collectives overlap with computation in
part. Only H100 and H200 are measured: for other GPUs the same shares of their own peaks are assumed.
"""

from __future__ import annotations

import dataclasses

from finecut.trainer.metrics import flops
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.planning import memory, shapes
from finecut.trainer.planning.gpus import Device
from finecut.trainer.planning.shapes import Parameters, widths
from finecut.trainer.planning.workload import Layout, Recompute, Workload

# Shares of peak operations. Products of 8B's matrices on H100: 680 TFLOP/s of 989 (docs/performance.md, "8B LoRA");
# smaller matrices fill fewer tiles: fitted to 0.6B and 1.7B. Cross entropy: 41.7 ms of products in 49.2 ms.
_PRODUCTS = 0.72
_PRODUCTS_HALF_WIDTH = 130  # hidden size at which half of that share is left
_HEAD = 0.60
# FlashAttention 4 forward and backward, 656 TFLOP/s on documents of 16,384 tokens, 389 of 2,048 ("Kernels").
_ATTENTION = 0.66
_ATTENTION_HALF_LENGTH = 2_000
# Shares of memory bandwidth: norms, rotations, SwiGLU, residuals; and the optimizer (2,616 of 3,350 GB/s).
_POINTWISE = 0.60
_STREAMING = 0.78
# How often a number between a layer's products is read or written, forward and backward together.
_POINTWISE_PASSES = 3.2
_EAGER_PASSES = 9.0
# Times that an adapter's products read or write their layer's inputs and outputs: 40 ms of 545 ("8B LoRA").
_ADAPTER_PASSES = 3.1
# Seconds of the host a layer and micro-batch: 153 ms over 28 compiled layers; eager ones start about 2.5 times as much.
_HOST_COMPILED = 5.4e-3
_HOST_EAGER = 13e-3
# Share of the link's bandwidth that NCCL reaches, and the share of the shorter of the two that computing and
# collectives cost each other.
_LINK = 0.75
_INTERFERENCE = 0.5


@dataclasses.dataclass(frozen=True)
class Speed:
    """One step, on every rank alike.

    Attributes:
      flops: Operations of the step over all ranks, as MFU counts them.
    """

    step_seconds: float
    tokens_per_step: int
    flops: float
    flops_per_token: float
    mfu: float

    @property
    def tokens_per_second(self) -> float:
        """Over all ranks."""
        return self.tokens_per_step / self.step_seconds


def plan(work: Workload, layout: Layout) -> Speed:
    """What a step takes."""
    counted = shapes.count(work.config, work.lora, work.num_outputs)
    num_micro = work.micro_batches(layout)
    seconds = num_micro * _micro_batch(work, layout, counted) + _update(work, layout, counted)
    tokens = work.global_blocks * work.block_size
    needed = _flops(work, tokens).total
    peak = layout.world_size * _peak(work)
    return Speed(seconds, tokens, needed, needed / tokens, needed / (seconds * peak))


def _flops(work: Workload, tokens: int) -> flops.Flops:
    """Of so many tokens in documents of the typical lengths."""
    lengths = work.lengths
    lora = work.lora.for_model(has_experts=work.config.experts is not None) if work.lora else None
    found = flops.by_part(work.config, lengths, round(sum(lengths) * work.trained_share), lora, work.num_outputs)
    share = tokens / sum(lengths)
    return flops.Flops(*(part * share for part in dataclasses.astuple(found)))


def _peak(work: Workload) -> float:
    return work.device.peak_32bit if work.number_bytes == 4 else work.device.peak_16bit


def _micro_batch(work: Workload, layout: Layout, counted: Parameters) -> float:
    tokens, device = layout.micro_blocks * work.block_size, work.device
    computing = _computing(work, layout, tokens) / layout.tensor_size + _frozen(work, layout, tokens)
    if not device.is_gpu:
        return computing
    computing += _pointwise(work, layout, tokens) + _gradient_sums(work, layout, counted)
    sharing = _sharing(work, layout, counted)
    shorter, longer = sorted((computing, sharing))
    working = longer + _INTERFERENCE * shorter + _tensor_parallel(work, layout, tokens)
    host = work.config.num_layers * (_HOST_COMPILED if work.compiled else _HOST_EAGER)
    return max(working, host)


def _computing(work: Workload, layout: Layout, tokens: int) -> float:
    """Matrix products and attention of one rank, were it alone."""
    found, peak = _flops(work, tokens), _peak(work)
    layers, attention = found.layers, found.attention
    if layout.recompute is Recompute.FULL:
        layers, attention = layers + found.layers_forward, attention + found.attention_forward
    if not work.device.is_gpu:
        return (layers + attention + found.head) / peak
    narrow = min(work.config.hidden_size, _inner_size(work.config))
    products = _PRODUCTS * narrow / (narrow + _PRODUCTS_HALF_WIDTH)
    seen = sum(n * n for n in work.lengths) / sum(work.lengths)  # length of the document of a typical token
    attending = _ATTENTION * seen / (seen + _ATTENTION_HALF_LENGTH)
    return (layers / products + attention / attending + found.head / _HEAD) / peak


def _inner_size(config: DecoderConfig) -> int:
    return config.experts.intermediate_size if config.experts else config.intermediate_size


def _frozen(work: Workload, layout: Layout, tokens: int) -> float:
    """Forward passes of the models beside it."""
    total = 0.0
    for other in work.frozen:
        found = flops.by_part(other.config, work.lengths, round(sum(work.lengths) * work.trained_share), None)
        head = found.head / 3 if other.num_outputs is None else 0.0
        needed = (found.layers_forward + found.attention_forward + head) * tokens / sum(work.lengths)
        total += needed / (_peak(work) * (_PRODUCTS if work.device.is_gpu else 1) * layout.tensor_size)
    return total


def _pointwise(work: Workload, layout: Layout, tokens: int) -> float:
    """What lies between products: bound by memory."""
    config = work.config
    Q, G = widths(config)
    inner = config.intermediate_size
    if config.experts:
        inner = config.experts.chosen * (config.experts.intermediate_size + config.hidden_size)
    numbers = (
        8 * config.hidden_size + (3 * (Q + G) * (2 if config.query_key_norm else 1) + 3 * inner) / layout.tensor_size
    )
    passes = _POINTWISE_PASSES if work.compiled else _EAGER_PASSES
    total = passes * numbers
    if layout.recompute is not Recompute.OFF:
        total *= 4 / 3
    if work.lora is not None:
        lora = work.lora.for_model(has_experts=config.experts is not None)
        sizes = flops.products(config, 0)
        total += _ADAPTER_PASSES * _POINTWISE * sum(sum(sizes[t][:2]) for t in lora.targets) / layout.tensor_size
    return total * config.num_layers * tokens * work.number_bytes / (work.device.bandwidth * _POINTWISE)


def _gradient_sums(work: Workload, layout: Layout, counted: Parameters) -> float:
    """Gradients of a micro-batch are read in 16 bits and added to FP32 ones; weights are cast to be gathered."""
    own = counted.trained / layout.tensor_size
    cast = 6 if layout.world_size > 1 else 0
    return own * (10 + 2 * cast) / (work.device.bandwidth * _STREAMING)


def _update(work: Workload, layout: Layout, counted: Parameters) -> float:
    """Clipping, and AdamW: 16 bytes of a parameter are read, 12 written; or the moments cross the bus."""
    if not work.device.is_gpu:
        return 28 * counted.trained / layout.world_size / work.device.bandwidth
    own = counted.trained / (layout.shard_size * layout.tensor_size)
    moments = 16 * own / (work.device.link if work.device.link < 30e9 else 25e9) if layout.offload_optimizer else 0.0
    return own * (28 + 12 + 6) / (work.device.bandwidth * _STREAMING) + moments


def _sharing(work: Workload, layout: Layout, counted: Parameters) -> float:
    """FSDP2's gathering, forward and backward, and its exchange of FP32 gradients."""
    others = layout.shard_size - 1
    if not others and layout.replicate_size == 1:
        return 0.0
    number_micro = work.micro_batches(layout)
    whole_once = memory.adds_up_whole_gradients(counted.trained, work.device.memory)
    exchanged = 4 * counted.trained / (number_micro if whole_once else 1)
    gathered = 2 * work.number_bytes * counted.total
    size = (gathered + exchanged) * others / layout.shard_size
    size += 2 * exchanged / layout.shard_size * (layout.replicate_size - 1) / layout.replicate_size
    return size / layout.tensor_size / (work.device.link * _LINK)


def _tensor_parallel(work: Workload, layout: Layout, tokens: int) -> float:
    """Two sums of hidden states a layer in each direction, which nothing overlaps with."""
    if layout.tensor_size == 1:
        return 0.0
    passes = 6 if layout.recompute is Recompute.FULL else 4
    size = passes * work.config.num_layers * tokens * work.config.hidden_size * work.number_bytes
    return size * 2 * (layout.tensor_size - 1) / layout.tensor_size / (work.device.link * _LINK)


def decode_tokens_per_second(config: DecoderConfig, device: Device, num_sequences: int, mean_length: float) -> float:
    """Tokens a second of one engine that answers so many prompts at a time; memory bound.

    Half of the bandwidth: vLLM 0.26 made 24,200 tokens/s of Qwen3-1.7B on one H100 (256 prompts of 256 tokens, 512 new
    ones), where reading weights and cache alone would allow 46,000.
    """
    _, G = widths(config)
    cache = 2 * 2 * G * config.num_layers * mean_length * num_sequences
    weights = 2 * shapes.count(config).total
    return num_sequences / ((weights + cache) / (0.52 * device.bandwidth))

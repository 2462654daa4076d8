"""Whether ranks, batch and model fit together: asked before a run by validation, and by the trainer on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finecut.proto.config.errors import Problem

# The decoder pads its vocabulary to a multiple of this.
VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class Layout:
    """How ranks are laid out and a batch cut. `shard_size` None: it follows. `world_size` None: not known yet."""

    world_size: int | None
    shard_size: int | None
    replicate_size: int
    tensor_parallel_size: int
    global_blocks: int
    micro_blocks: int


@dataclass(frozen=True)
class ModelSizes:
    """What tensor parallelism has to divide."""

    num_heads: int
    num_key_heads: int
    intermediate_size: int
    vocabulary_size: int
    # Of one expert's feed-forward layer. None: the model has no experts.
    expert_size: int | None = None

    @classmethod
    def from_folder(cls, folder: str) -> ModelSizes | None:
        """From a model folder's config.json; None where it does not say (loading the model says why)."""
        try:
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
            config = config.get("text_config") or config
            num_heads = int(config["num_attention_heads"])
            num_key_heads = int(config.get("num_key_value_heads") or num_heads)
            sizes = (int(config["intermediate_size"]), int(config["vocab_size"]))
            expert_size = int(config["moe_intermediate_size"]) if config.get("num_experts") else None
            return cls(num_heads, num_key_heads, *sizes, expert_size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def check(layout: Layout, model: ModelSizes | None, path: str) -> Iterator[Problem]:
    """Everything that does not fit; `path` is that of the TrainingConfig. `model` None: it is not known yet."""
    sizes = (layout.replicate_size, layout.tensor_parallel_size, layout.shard_size or 1, layout.micro_blocks)
    if min(sizes) < 1:
        return  # refused field by field already
    yield from _check_ranks(layout, f"{path}.parallelism")
    if model is not None:
        yield from _check_model(layout, model, f"{path}.parallelism.tensor_parallel_size")
    yield from _check_batch(layout, f"{path}.batch.global_blocks")


def divisors(number: int) -> list[int]:
    """The divisors up to 4,096. Whoever asks for 2**31 ranks shall not wait for a list of all."""
    return [n for n in range(1, min(number, 4096) + 1) if number % n == 0]


def _check_ranks(layout: Layout, path: str) -> Iterator[Problem]:
    world = layout.world_size
    if world is None or world < 1:
        return
    sizes = {"replicate_size": layout.replicate_size, "tensor_parallel_size": layout.tensor_parallel_size}
    outer = layout.replicate_size * layout.tensor_parallel_size
    if world % outer:
        chosen = {name: size for name, size in sizes.items() if size > 1}
        product = " x ".join(f"{name} {size}" for name, size in chosen.items())
        equals = f" = {outer}" if len(chosen) > 1 else ""
        fits = _in_words(divisors(world))
        yield Problem(
            f"{path}.{next(iter(chosen))}",
            f"{product}{equals} does not divide the {world} ranks; "
            + (f"use sizes whose product is {fits}" if len(chosen) > 1 else f"use {fits}"),
        )
    elif layout.shard_size is not None and layout.shard_size * outer != world:
        product = f" x {outer} = {layout.shard_size * outer}" if outer > 1 else ""
        yield Problem(
            f"{path}.shard_size",
            f"{layout.shard_size}{product} is not the number of ranks, {world}; leave it unset or use {world // outer}",
        )


def _check_model(layout: Layout, model: ModelSizes, path: str) -> Iterator[Problem]:
    size = layout.tensor_parallel_size
    broken = [] if size == 1 else [words for words, divides in _divided(model) if not divides(size)]
    if not broken:
        return
    fits = [
        n
        for n in divisors(model.num_heads)
        if all(divides(n) for _, divides in _divided(model)) and (layout.world_size or 0) % n == 0
    ]
    yield Problem(path, f"{size} does not divide the model's {' and '.join(broken)}; use {_in_words(fits)}")


def _divided(model: ModelSizes) -> list[tuple[str, Callable[[int], bool]]]:
    """What tensor parallelism divides, in words, and whether a degree does."""
    experts = model.expert_size
    keys, vocabulary = model.num_key_heads, -(-model.vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return [
        (f"{model.num_heads} heads", lambda n: model.num_heads % n == 0),
        # With fewer key heads than ranks, each is held by several.
        (f"{keys} key heads, nor is it a multiple of them", lambda n: keys % n == 0 or n % keys == 0),
        (f"intermediate size of {model.intermediate_size:,}", lambda n: model.intermediate_size % n == 0),
        (f"padded vocabulary of {vocabulary:,}", lambda n: vocabulary % n == 0),
        (f"expert size of {experts:,}" if experts else "", lambda n: not experts or experts % n == 0),
    ]


def _check_batch(layout: Layout, path: str) -> Iterator[Problem]:
    world = layout.world_size or layout.tensor_parallel_size * layout.replicate_size * (layout.shard_size or 1)
    data_size, left = divmod(world, layout.tensor_parallel_size)
    unit = layout.micro_blocks * data_size
    if left or not unit or layout.global_blocks % unit == 0:
        return
    each = f"each of {data_size} data-parallel ranks" if data_size > 1 else "one data-parallel rank"
    nearest = max(unit, round(layout.global_blocks / unit) * unit)
    yield Problem(
        path,
        f"{layout.global_blocks} is not a multiple of {unit} (micro_blocks {layout.micro_blocks} on {each}); "
        f"use {nearest}",
    )


def _in_words(numbers: list[int]) -> str:
    """ "1", "1 or 2", "1, 2 or 4"."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last

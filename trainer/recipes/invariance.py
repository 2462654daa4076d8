"""Every way to cut the same batch gives the gradient of one process: the combinations, and how one is measured.

    bazel run //trainer/recipes:invariance                        4 CPU ranks; rewrites docs/matrix.md
    torchrun --nproc-per-node=2 -m finecut.trainer.recipes.invariance     the same on GPUs, over NCCL; prints

The reference is one process in FP32 without packing: each document is run by itself, and the loss is torch's own
cross entropy over whole logits. A case goes through the trainer's own path, from the data on disk to the gradients.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from finecut.dataprep.shards import SplitReader
from finecut.trainer.config import Precision
from finecut.trainer.data.batches import IGNORED, targets_of
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import locate_model, materialize, save_adapter
from finecut.trainer.models.lora import LoraConfig, apply_lora, lora_layers
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.leaving import leave
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization, supervised
from finecut.trainer.recipes.config import SftConfig
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_data
from finecut.trainer.testing import write_tiny_llama, write_tiny_model

NUM_BLOCKS = 13  # no multiple of anything: some ranks run out of blocks
RANKS = 4
# Of the largest element of a parameter's gradient. FP32's own rounding is 6e-8; a sum over a few hundred tokens in
# another order, through two layers and back, was seen to move gradients by up to 6e-6 on CPUs.
TOLERANCE = {"cpu": 2e-5, "cuda": 1e-3}

# qwen2 has biases on queries and keys, qwen3 norms of heads; gemma3 has norms, soft caps, a window, tied embeddings;
# qwen3_moe has experts.
MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": write_tiny_llama,
    "llama, tied, all biases": lambda folder: write_tiny_llama(
        folder, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "qwen2": lambda folder: write_tiny_model(folder, "qwen2"),
    "qwen3": lambda folder: write_tiny_model(folder, "qwen3"),
    "gemma3": lambda folder: write_tiny_model(folder, "gemma3_text"),
    "qwen3_moe": lambda folder: write_tiny_model(folder, "qwen3_moe"),
}
_LORA = LoraConfig(rank=3, alpha=6.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to cut the batch, and what is done on the way."""

    replicate: int
    shard: int
    tensor: int
    model: str
    micro_blocks: int
    packed: bool
    lora: bool
    checkpointing: str
    chunk_tokens: int

    @property
    def ranks(self) -> int:
        return self.replicate * self.shard * self.tensor

    @property
    def training(self) -> str:
        """As text format of a TrainingConfig. The whole data is one step."""
        return f"""
            epochs: 1
            batch {{ global_blocks: 32 micro_blocks: {self.micro_blocks} }}
            parallelism {{ replicate_size: {self.replicate} tensor_parallel_size: {self.tensor} }}
            activation_checkpointing: {self.checkpointing}
            loss {{ chunk_tokens: {self.chunk_tokens} }}
        """


@dataclasses.dataclass(frozen=True)
class Result:
    """How far a case is from the reference; `gradient` is relative to each parameter's largest element."""

    case: Case
    loss: float
    gradient: float
    norm: float

    @property
    def worst(self) -> float:
        return max(self.loss, self.gradient, self.norm)


def cases(num_ranks: int) -> list[Case]:
    """Combinations in which any two settings meet at least once, for so many ranks."""
    layouts = [
        (replicate, shard, num_ranks // (replicate * shard))
        for replicate, shard in itertools.product(range(1, num_ranks + 1), repeat=2)
        if num_ranks % (replicate * shard) == 0
    ]
    choices: list[Sequence[Any]] = [layouts, list(MODELS), [1, 2, 4], [True, False], [False, True]]
    choices += [["OFF", "SELECTIVE", "FULL"], [16, 1024]]
    return [Case(*row[0], *row[1:]) for row in pairwise(choices)]


def pairwise(choices: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows with one value of each choice, few, such that any two values of two choices stand in one row together."""
    rows = list(itertools.product(*choices))
    missing = {pair for row in rows for pair in pairs_of(row)}
    chosen = []
    while missing:
        best = max(rows, key=lambda row: sum(pair in missing for pair in pairs_of(row)))
        chosen.append(best)
        missing.difference_update(pairs_of(best))
    return chosen


def pairs_of(row: Sequence[Any]) -> Iterator[tuple[tuple[int, Any], tuple[int, Any]]]:
    """Each two places of a row with what stands there."""
    return itertools.combinations(enumerate(row), 2)


def write_inputs(root: Path) -> None:
    """Models, adapters, packed and unpacked data and reference gradients for all cases."""
    for model, write in MODELS.items():
        folder = root / model
        write(folder / "model")
        write_tiny_data(folder / "data", folder / "model", NUM_BLOCKS)
        write_tiny_data(folder / "alone", folder / "model", NUM_BLOCKS, alone=True)
        _write_adapter(folder)
        for lora in (False, True):
            torch.save(_reference(folder, lora), folder / f"reference-{lora}.pt")


def _write_adapter(folder: Path) -> None:
    """An adapter whose B is not zero, or A would have no gradient."""
    model = _build(folder / "model", lora=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_b.normal_(std=0.1, generator=generator)
    save_adapter(model, folder / "adapter", base_model="../model")


def _build(source: Path, lora: bool) -> Decoder:
    located = locate_model(source)
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(located.base))
        if lora:
            apply_lora(model, _LORA)
    materialize(model, located, "cpu", seed=0)
    return model


def _reference(folder: Path, lora: bool) -> dict[str, Any]:
    model = _build(folder / ("adapter" if lora else "model"), lora)
    reader = SplitReader(folder / "alone", "train")
    blocks = reader.read(range(len(reader)))
    targets_NL = torch.from_numpy(targets_of(blocks))
    num_targets = int((targets_NL != IGNORED).sum())
    loss = 0.0
    for i in range(len(reader)):
        length = int((blocks.document_id_NL[i] >= 0).sum())
        arrays = (blocks.input_ids_NL, blocks.position_id_NL, blocks.document_id_NL)
        hidden_1LD = model(*(torch.from_numpy(array[i : i + 1, :length]).long() for array in arrays))
        logits_LV = model.logits(hidden_1LD)[0]
        part = functional.cross_entropy(logits_LV, targets_NL[i, :length], ignore_index=IGNORED, reduction="sum")
        part = part / num_targets
        part.backward()
        loss += part.item()
    gradients = {name: p.grad for name, p in named_parameters(model) if p.grad is not None}
    return {"loss": loss, "gradients": gradients}


def measure(case: Case, root: Path, world: Devices) -> Result:
    """Loss and gradients of one step against the reference, the same on every rank. Collective."""
    folder = root / case.model
    lora = f"lora {{ rank: {_LORA.rank} alpha: {_LORA.alpha} }}" if case.lora else ""
    job = tiny_job(folder, case.training, lora, storage="runs")
    config = SftConfig.from_proto(job.stages[0].sft)
    devices = mesh.arrange(world, config.training.parallelism)
    source = locate_model(folder / ("adapter" if case.lora else "model"))
    decoder_config = DecoderConfig.from_folder(source.base)
    model = supervised.build_model(config, decoder_config, source, Precision.FP32, devices)
    data = open_data(folder / ("data" if case.packed else "alone"), source, decoder_config, config.training, devices)
    loss = optimization.forward_backward(model, data.train.step(1).micro_batches, 1.0, devices)
    norm = optimization.clip_gradients(model, 1.0, max_norm=1e9)
    data.close()
    reference = torch.load(folder / f"reference-{case.lora}.pt", weights_only=True)
    expected = reference["gradients"]
    gradients = {name: gather(p.grad).cpu() for name, p in named_parameters(model) if p.grad is not None}
    assert gradients.keys() == expected.keys(), gradients.keys() ^ expected.keys()
    errors = [_relative(gradients[name], expected[name]) for name in expected]
    expected_norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    return Result(
        case,
        loss=abs(loss.mean / reference["loss"] - 1),
        gradient=devices.max(max(errors)),
        norm=abs(norm / expected_norm - 1),
    )


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def measure_all(root: Path, num_ranks: int, output: Path) -> None:
    """Every case for so many ranks, as one rank of them; rank 0 writes the results as JSON."""
    with process_group.connect() as world:
        results = [measure(case, root, world) for case in cases(num_ranks)]
        if world.is_main:
            output.write_text(json.dumps([dataclasses.asdict(result) for result in results]))


def read_results(path: Path) -> list[Result]:
    """What `measure_all` wrote."""
    return [Result(**(fields | {"case": Case(**fields["case"])})) for fields in json.loads(path.read_text())]


def render(results: Sequence[Result]) -> str:
    """docs/matrix.md: the combinations that were measured."""
    lines = [
        "# Tested combinations",
        "",
        "Each line is a run of the trainer's own path on CPUs (gloo) whose loss, gradients and gradient norm equal",
        "those of one process in FP32 that runs each document by itself and takes torch's cross entropy over whole",
        f"logits. Gradients agree to {TOLERANCE['cpu']:g} of each parameter's largest element. Any two settings meet.",
        "",
        "`//trainer/recipes:gradient_invariance_test` measures them and compares this page;",
        "`bazel run //trainer/recipes:invariance` writes it. The same runs on GPUs with",
        "`torchrun --nproc-per-node=2 -m finecut.trainer.recipes.invariance`.",
        "",
        "| ranks | replicate x shard x tensor | model | micro_blocks | blocks | trained | activation checkpointing"
        " | loss.chunk_tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in (result.case for result in results):
        layout = f"{case.replicate} x {case.shard} x {case.tensor}"
        blocks, trained = "packed" if case.packed else "one document", "LoRA" if case.lora else "all"
        cells = [case.ranks, layout, case.model, case.micro_blocks, blocks, trained, case.checkpointing]
        lines.append(" | ".join(map(str, ["", *cells, case.chunk_tokens, ""])).strip())
    return "\n".join(lines) + "\n"


def run_on_cpus(root: Path) -> list[Result]:
    """All cases, on one rank and on four."""
    write_inputs(root)
    results = []
    for num_ranks in (1, RANKS):
        run_ranks(num_ranks, measure_all, root, num_ranks, root / f"{num_ranks}.json")
        results += read_results(root / f"{num_ranks}.json")
    return results


def _run_as_rank() -> int:
    """Under torchrun: prints every case, and fails where one is not within its tolerance."""
    with process_group.connect() as world, tempfile.TemporaryDirectory() as folder:
        root = Path(world.from_main(folder))
        if world.is_main:
            write_inputs(root)
        world.barrier()
        tolerance, worst = TOLERANCE[world.device.type], 0.0
        for case in cases(world.world_size):
            result = measure(case, root, world)
            worst = max(worst, result.worst)
            if world.is_main:
                print(f"{result.worst:.1e}  {case}", flush=True)
        world.barrier()
    return 0 if worst <= tolerance else 1


def main() -> int:
    if "WORLD_SIZE" in os.environ:
        leave(_run_as_rank())
    with tempfile.TemporaryDirectory() as folder:
        results = run_on_cpus(Path(folder))
    failed = [result for result in results if result.worst > TOLERANCE["cpu"]]
    if failed:
        print("\n".join(map(str, failed)), file=sys.stderr)
        return 1
    target = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", ".")) / "docs" / "matrix.md"
    target.write_text(render(results), encoding="utf-8")
    print(f"{len(results)} combinations agree; {target} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

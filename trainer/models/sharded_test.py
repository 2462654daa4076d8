"""Two ranks under FSDP2 (gloo, loopback) load, train and save what one process does."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import materialize, save_adapter, save_model
from finecut.trainer.models.lora import LoraConfig, apply_lora
from finecut.trainer.models.safetensors_read import TensorFolder
from finecut.trainer.models.vocabulary import grow
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.testing import write_tiny_model

WORLD_SIZE = 2


def build(source: Path, lora: bool, sharded: bool, growth: int = 0) -> Decoder:
    with torch.device("meta"):
        config = grow(DecoderConfig.from_folder(source), source, (), growth)
        model = Decoder(config, loss_chunk_tokens=16)
    if lora:
        apply_lora(model, LoraConfig(rank=3))
    if sharded:
        # Named, because it would be the GPU's on a machine that has one.
        mesh = init_device_mesh("cpu", (WORLD_SIZE,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    materialize(model, source, "cpu", seed=7)
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss_and_gradients(model: Decoder) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Every rank gets the same batch, so that FSDP's mean over ranks is the gradient of one process."""
    input_ids = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))
    document_ids = torch.tensor([[0] * 10 + [1] * 14, [0] * 20 + [-1] * 4])
    position_ids = torch.tensor([[*range(10), *range(14)], [*range(20), 0, 0, 0, 0]])
    targets = input_ids.roll(-1, dims=1).masked_fill(document_ids < 0, -100)
    loss = model(input_ids, position_ids, document_ids, targets)
    loss.backward()
    return loss, {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def join() -> int:
    """Makes this process a rank of the group; returns its number."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo")
    return dist.get_rank()


def check_rank(source: Path, out: Path, lora: bool) -> None:
    rank = join()
    try:
        single, model = build(source, lora, sharded=False), build(source, lora, sharded=True)
        expected = dict(single.named_parameters())
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor) and parameter.to_local().numel() < parameter.numel(), name
            assert torch.equal(whole(parameter), expected[name]), name
        loss, gradients = loss_and_gradients(model)
        expected_loss, expected_gradients = loss_and_gradients(single)
        assert gradients.keys() == expected_gradients.keys()
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5, msg=name)
        save_model(model, out / "sharded", source, torch.float32, max_shard_bytes=100_000)
        if lora:
            save_adapter(model, out / "adapter", str(source))
    finally:
        dist.destroy_process_group()
    if rank == 0:  # no process group any more: this is the one-process path
        save_model(single, out / "single", source, torch.float32)
        if lora:
            save_adapter(single, out / "single_adapter", str(source))


def check_reads(source: Path, out: Path) -> None:
    """Each rank reads its own half, one part of one tensor at a time; new rows are the same as in one process."""
    rank = join()
    sizes: list[int] = []
    honest = TensorFolder.read

    def counted(self: TensorFolder, name: str, offset: Sequence[int], size: Sequence[int]) -> torch.Tensor:
        value = honest(self, name, offset, size)
        sizes.append(value.nbytes)
        return value

    TensorFolder.read = counted  # type: ignore[method-assign]
    try:
        model = build(source, lora=False, sharded=True)
        held = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))
        (out / str(rank)).write_text(f"{sum(sizes)} {max(sizes)} {held}")
        grown, alone = build(source, False, True, growth=40), build(source, False, False, growth=40)
        for (name, a), b in zip(grown.named_parameters(), alone.parameters(), strict=True):
            assert torch.equal(whole(a), b), name
    finally:
        dist.destroy_process_group()


def test_no_rank_reads_more_than_its_part(tmp_path):
    source = write_tiny_model(tmp_path / "source", "qwen3_moe", num_hidden_layers=4)
    run_ranks(WORLD_SIZE, check_reads, source, tmp_path)
    tensors = tensors_of(source).values()
    total, largest = sum(t.nbytes for t in tensors), max(t.nbytes for t in tensors)
    reads = [[int(number) for number in (tmp_path / str(rank)).read_text().split()] for rank in range(WORLD_SIZE)]
    assert sum(read for read, _, _ in reads) == total
    for read, largest_read, held in reads:
        assert read < 0.53 * total and held < 0.53 * total and largest_read < 0.53 * largest


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


# Two key heads of 16 and 3 ranks of adapter shard unevenly over 2 ranks; so do 500 tokens.
@pytest.mark.parametrize(
    ("family", "lora", "fields"),
    [
        ("llama", False, {"tie_word_embeddings": False}),
        ("llama", True, {"tie_word_embeddings": True}),
        ("qwen3_moe", False, {}),
    ],
    ids=str,
)
def test_two_ranks_equal_one_process(family, lora, fields, tmp_path):
    source = write_tiny_model(tmp_path / "source", family, **fields)
    run_ranks(WORLD_SIZE, check_rank, source, tmp_path, lora)
    sharded, single, original = (tensors_of(tmp_path / name) for name in ("sharded", "single", "source"))
    assert sharded.keys() == single.keys() == original.keys()
    for name in original:
        # B is zero, so the merged weights are the original ones as well.
        assert torch.equal(sharded[name], original[name]) and torch.equal(single[name], original[name]), name
    if lora:
        adapter, single_adapter = tensors_of(tmp_path / "adapter"), tensors_of(tmp_path / "single_adapter")
        assert adapter.keys() == single_adapter.keys() and len(adapter) == 2 * 7 * 2
        assert all(torch.equal(adapter[n], single_adapter[n]) for n in adapter)

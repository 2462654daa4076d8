"""What must hold on a mesh of four ranks beside equal gradients: dropout, overflow, padding, memory, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts
from finecut.trainer import stage as trainer_stage
from finecut.trainer.checkpoint import random_state
from finecut.trainer.config import Precision
from finecut.trainer.data.batches import MicroBatch, TokenCounts
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import locate_model, materialize
from finecut.trainer.models.lora import apply_lora
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel import gradient_norm, mesh, process_group
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization, supervised
from finecut.trainer.recipes.config import SftConfig
from finecut.trainer.recipes.supervised_data import SupervisedData, open_data
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs
from finecut.trainer.testing import write_tiny_llama

TWO_BY_TWO = "parallelism { tensor_parallel_size: 2 }"
FOUR = "parallelism { tensor_parallel_size: 4 }"
LORA = "lora { rank: 4 dropout: 0.3 }"
SIX_STEPS = "max_steps: 6 batch { global_blocks: 4 } checkpointing { every_steps: 3 keep_last: 3 }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    write_tiny_llama(root / "large", hidden_size=256, intermediate_size=512, num_hidden_layers=6)
    return root


@dataclasses.dataclass
class Setup:
    """A model and its data on a mesh."""

    config: SftConfig
    devices: Devices
    model: Decoder
    data: SupervisedData


def build(root: Path, world: Devices, training: str, lora: str = "", precision: Precision = Precision.FP32) -> Setup:
    config = SftConfig.from_proto(tiny_job(root, training, lora).stages[0].sft)
    devices = mesh.arrange(world, config.training.parallelism)
    source = locate_model(root / "model")
    decoder_config = DecoderConfig.from_folder(source.base)
    model = supervised.build_model(config, decoder_config, source, precision, devices)
    data = open_data(root / "data", source, decoder_config, config.training, devices)
    return Setup(config, devices, model, data)


def alone(root: Path, config: SftConfig) -> Decoder:
    """The same model, whole, on this rank."""
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(root / "model"))
        if config.lora:
            apply_lora(model, config.lora)
    materialize(model, locate_model(root / "model"), "cpu", config.training.seed)
    return model


def set_adapters(model: Decoder) -> None:
    """B away from zero, alike on every mesh, so that A has a gradient."""
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            if name.endswith("lora_b"):
                (parameter.to_local() if isinstance(parameter, DTensor) else parameter).fill_(0.01)


def loss_sum(model: Decoder, batch: MicroBatch) -> torch.Tensor:
    return model(batch.input_ids_BL, batch.position_ids_BL, batch.document_ids_BL, batch.targets_BL)


def assert_same_gradients(model: Decoder, expected: Decoder) -> None:
    for (name, found), (_, one) in zip(named_parameters(model), named_parameters(expected), strict=True):
        if one.grad is not None:
            assert found.grad is not None, name
            torch.testing.assert_close(gather(found.grad), one.grad, rtol=1e-4, atol=2e-6, msg=name)


def check_dropout(root: Path, world: Devices) -> None:
    """A split layer drops what the whole layer would."""
    setup = build(root, world, f"{FOUR} batch {{ global_blocks: 2 }}", LORA)
    whole = alone(root, setup.config)
    for model in (setup.model, whole):
        set_adapters(model)
    (one, other) = setup.data.train.step(1).micro_batches
    random_state.seed(1, setup.devices.data_rank)
    loss = optimization.forward_backward(setup.model, [one, other], 1.0, setup.devices)
    random_state.seed(1, 0)
    for batch in (one, other):
        (loss_sum(whole, batch) / loss.tokens.trained).backward()
    assert_same_gradients(setup.model, whole)
    setup.data.close()


def check_padding(root: Path, world: Devices) -> None:
    """A rank whose whole micro-batch is padding takes part in everything and adds nothing."""
    setup = build(root, world, f"{TWO_BY_TWO} batch {{ global_blocks: 2 }}")
    (batch,) = setup.data.train.step(1).micro_batches
    batches = [batch]
    if setup.devices.data_rank == 1:
        padding = torch.full_like(batch.document_ids_BL, -1)
        batches = [
            MicroBatch(padding * 0, padding * 0, padding, padding * 100, TokenCounts(padded=padding.numel())),
        ]
    loss = optimization.forward_backward(setup.model, batches, 1.0, setup.devices)
    whole = alone(root, setup.config)
    first: list[Any] = [None] * world.world_size
    torch.distributed.all_gather_object(first, dataclasses.asdict(batch))
    batch = MicroBatch(**first[0] | {"tokens": TokenCounts(**first[0]["tokens"])})
    assert loss.tokens.trained == batch.tokens.trained
    (loss_sum(whole, batch) / batch.tokens.trained).backward()
    assert_same_gradients(setup.model, whole)
    setup.data.close()


def check_overflow(root: Path, world: Devices) -> None:
    """One infinite element on one rank is seen by all, and every rank skips the step."""
    setup = build(root, world, TWO_BY_TWO, precision=Precision.FP16)
    optimizer = optimization.adamw(setup.model, setup.config.training.optimizer)
    scaler = LossScaler(enabled=True, scale=1024.0)
    optimization.forward_backward(setup.model, setup.data.train.step(1).micro_batches, 1024.0, setup.devices)
    gradients = [parameter.grad for parameter in setup.model.parameters()]
    assert torch.isfinite(torch.tensor(gradient_norm.total_norm(gradients)))
    if world.rank == 2:
        gradients[3].to_local().view(-1)[0] = torch.inf
    norm = gradient_norm.total_norm(gradients)
    assert norm == torch.inf
    assert scaler.update(norm != torch.inf, step=1) is False and scaler.scale == 512.0
    setup.model.zero_grad()

    scaler.scale = 2.0**60
    before = [parameter.to_local().clone() for parameter in setup.model.parameters()]
    supervised.train_step(setup.model, optimizer, scaler, setup.data, setup.config, 2, setup.devices)
    assert scaler.scale == 2.0**59
    assert all(torch.equal(a, b.to_local()) for a, b in zip(before, setup.model.parameters(), strict=True))
    setup.data.close()


class Peak(TorchDispatchMode):
    """The most bytes that the tensors of all operations held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        for leaf in tree_leaves((args, kwargs, result)):
            tensor = leaf.to_local() if isinstance(leaf, DTensor) else leaf
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._sizes[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result


def check_memory(root: Path, world: Devices) -> None:
    """No rank ever holds more than its part and what it is just reading."""
    config = SftConfig.from_proto(tiny_job(root, TWO_BY_TWO).stages[0].sft)
    devices = mesh.arrange(world, config.training.parallelism)
    source = locate_model(root / "large")
    with Peak() as peak:
        model = supervised.build_model(config, DecoderConfig.from_folder(source.base), source, Precision.FP32, devices)
    whole = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    own = sum(parameter.to_local().numel() * parameter.itemsize for parameter in model.parameters())
    assert own < 0.26 * whole
    assert own < peak.peak < 0.35 * whole, (own, peak.peak, whole)
    if world.is_main:
        (root / "memory.json").write_text(json.dumps({"whole": whole, "own": own, "peak": peak.peak}))


CHECKS: list[Callable[[Path, Devices], None]] = [check_dropout, check_padding, check_overflow, check_memory]


def run_checks(root: Path) -> None:
    with process_group.connect() as world:
        for check in CHECKS:
            check(root, world)


def test_dropout_overflow_padding_and_memory_on_four_ranks(root):
    run_ranks(4, run_checks, root)
    memory = json.loads((root / "memory.json").read_text())
    assert memory["whole"] > 10e6 and memory["peak"] < 0.35 * memory["whole"]


def leave_last_checkpoint(source: job_pb2.JobConfig, target: job_pb2.JobConfig, step: int) -> None:
    """Gives `target` the run folder of `source` as it was when it died after the checkpoint of `step`, in one go."""
    folder = RunFolder.of(target).root
    draft = folder.with_name("draft")
    shutil.copytree(RunFolder.of(source).root, draft)
    shutil.rmtree(draft / "stages" / "sft" / "artifact")
    for later in (draft / "stages" / "sft" / "checkpoints").iterdir():
        if later.name > f"step-{step:08d}":
            shutil.rmtree(later)
    draft.rename(folder)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def train_in_turn(pairs: list[tuple[job_pb2.JobConfig, job_pb2.JobConfig]], ports: list[int]) -> None:
    """As one rank: runs the first job of each pair, then the second from the first's last checkpoint.

    Each meets at a port of its own: the store at the last one may not be gone yet.
    """
    for first, second in pairs:
        os.environ["MASTER_PORT"] = str(ports.pop())
        artifact = trainer_stage.run_stage(first, "sft")
        if artifact:  # rank 0
            leave_last_checkpoint(first, second, 6)
        deadline = time.monotonic() + 1500
        while not RunFolder.of(second).root.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.environ["MASTER_PORT"] = str(ports.pop())
        trainer_stage.run_stage(second, "sft")


def weights(job: job_pb2.JobConfig) -> dict[str, torch.Tensor]:
    return load_file(next(RunFolder.of(job).artifact("sft").glob("*.safetensors")))


def last_loss(job: job_pb2.JobConfig) -> float:
    return artifacts.read(RunFolder.of(job).artifact("sft")).model.metrics["loss"]


def test_a_run_goes_on_on_any_mesh(root, tmp_path):
    def job(name: str, lora: str, training: str = "") -> job_pb2.JobConfig:
        return tiny_job(root, f"{SIX_STEPS} {training}", lora, storage=str(tmp_path / f"{name}-{bool(lora)}"))

    loras = ("", "lora { rank: 3 }")
    ones = [job("one", lora) for lora in loras]
    twos = [job("two", lora, "parallelism { tensor_parallel_size: 2 offload_optimizer: true }") for lora in loras]
    fours = [job("four", lora, f"{FOUR} activation_checkpointing: SELECTIVE") for lora in loras]
    backs = [job("back", lora) for lora in loras]
    for one, two in zip(ones, twos, strict=True):
        trainer_stage.run_stage(one, "sft")
        leave_last_checkpoint(one, two, 3)
    run_ranks(4, train_in_turn, list(zip(twos, fours, strict=True)), free_ports(4))
    for one, two, four, back in zip(ones, twos, fours, backs, strict=True):
        found, expected = weights(two), weights(one)
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
        # Adam divides by the gradient's size: rounding in tiny gradients shows in the weights.
        assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 2e-3
        assert last_loss(two) == pytest.approx(last_loss(one), rel=1e-4)
        # What the mesh wrote is read back bit by bit, on another mesh and on one rank.
        leave_last_checkpoint(two, back, 6)
        trainer_stage.run_stage(back, "sft")
        for again in (four, back):
            assert all(torch.equal(tensor, found[name]) for name, tensor in weights(again).items())


def test_a_degree_that_does_not_divide_the_model_is_refused(root, tmp_path):
    job = tiny_job(root, "batch { global_blocks: 4 }", storage=str(tmp_path))
    job.stages[0].sft.training.parallelism.tensor_parallel_size = 3  # validation would not let it pass
    with pytest.raises(UserError, match=r"tensor_parallel_size: 3 does not divide the model's 4 heads .*; use 1$"):
        trainer_stage.run_stage(job, "sft")

"""DPO against a reference in float64, however pairs are cut and sharded; and it learns."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from finecut.dataprep.shards import SplitReader
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder
from finecut.proto.run.events import follow
from finecut.trainer.config import Precision
from finecut.trainer.data.batches import IGNORED, targets_of
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import dpo, optimization, registry
from finecut.trainer.recipes.supervised import Setup, build_model
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.recipes.testing_pairs import tiny_pairs_job, write_tiny_pairs
from finecut.trainer.stage import run_stage
from finecut.trainer.testing import write_tiny_llama

BETA = 0.3
NUM_BLOCKS = 5
REFERENCE = 'reference_model: "{root}/reference"'
VARIANTS = {
    "sigmoid": f"beta: {BETA}",
    "smoothed": f"beta: {BETA} label_smoothing: 0.2",
    "normalized": f"beta: {BETA} length_normalized: true",
    "ipo": f"beta: {BETA} variant: IPO",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    # Narrow enough that an answer's log-probability differs by nats, not by hundreds.
    write_tiny_llama(root / "model", initializer_range=0.1)
    write_tiny_llama(root / "reference", seed=1, initializer_range=0.1)
    write_tiny_pairs(root / "pairs", root / "model", NUM_BLOCKS, 2)
    shutil.copytree(root / "model", root / "alone" / "model")
    shutil.copytree(root / "reference", root / "alone" / "reference")
    write_tiny_pairs(root / "alone" / "pairs", root / "model", NUM_BLOCKS, 2, alone=True)
    return root


def answers_in_float64(root: Path, model: Path) -> tuple[transformers.PreTrainedModel, torch.Tensor, torch.Tensor]:
    """log p and tokens of each pair's answers, [pairs, 2], by `transformers`, one document at a time."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    reader = SplitReader(root / "alone" / "pairs", "train")
    blocks = reader.read(range(len(reader)))
    targets_NL = torch.from_numpy(targets_of(blocks))
    found, lengths = [], []
    for n in range(len(reader)):
        for document in (0, 1):
            where_L = torch.from_numpy(blocks.document_id_NL[n] == document)
            ids_L = torch.from_numpy(blocks.input_ids_NL[n]).long()[where_L]
            target_L = targets_NL[n][where_L]
            is_target_L = target_L != IGNORED
            log_p_LV = reference(ids_L[None]).logits[0].log_softmax(-1)
            found.append(log_p_LV[is_target_L].gather(1, target_L[is_target_L][:, None]).sum())
            lengths.append(int(is_target_L.sum()))
    return reference, torch.stack(found).view(-1, 2), torch.tensor(lengths).view(-1, 2)


def expected(root: Path, variant: str) -> tuple[float, dict[str, torch.Tensor], float]:
    """Loss, gradients and accuracy, written from the papers' formulas."""
    policy, log_p_N2, lengths_N2 = answers_in_float64(root, root / "model")
    with torch.no_grad():
        _, reference_N2, _ = answers_in_float64(root, root / "reference")
    ratio_N2 = log_p_N2 - reference_N2
    if variant == "normalized":
        ratio_N2 = ratio_N2 / lengths_N2
    h_N = ratio_N2[:, 0] - ratio_N2[:, 1]
    smoothing = 0.2 if variant == "smoothed" else 0.0
    if variant == "ipo":
        loss = ((h_N - 1 / (2 * BETA)) ** 2).mean()
    else:
        win_N, lose_N = (1 / (1 + torch.exp(-sign * BETA * h_N)) for sign in (1, -1))
        loss = -((1 - smoothing) * win_N.log() + smoothing * lose_N.log()).mean()
    loss.backward()
    gradients = {
        "embedding.weight": policy.model.embed_tokens.weight.grad,
        "layers.1.mlp.up_proj.weight": policy.model.layers[1].mlp.up_proj.weight.grad,
        "layers.0.attention.q_proj.weight": policy.model.layers[0].self_attn.q_proj.weight.grad,
        "head.weight": policy.lm_head.weight.grad,
    }
    return loss.item(), gradients, (h_N > 0).double().mean().item()


def measure(root: Path, variant: str, training: str, world: Devices) -> tuple[optimization.StepLoss, dict]:
    """One step through the trainer's own path."""
    fields = VARIANTS[variant] + " " + REFERENCE.format(root=root)
    job = tiny_pairs_job(root, "dpo", fields, f"epochs: 1 {training}")
    recipe = registry.recipe_of(job.stages[0])
    training_config = recipe.config.training
    devices = mesh.arrange(world, training_config.parallelism)
    source = locate_model(root / "model")
    decoder_config = DecoderConfig.from_folder(source.base)
    model = build_model(recipe.config, decoder_config, source, Precision.FP32, devices)
    data = open_data(root / "pairs", source, decoder_config, training_config, devices, kind=recipe.data_kind)
    place = type("Place", (), {"roles": {"reference": root / "reference"}})()
    objective = recipe.objective(model, Setup(place, source, decoder_config, Precision.FP32, data, devices))
    loss = optimization.forward_backward(model, data.train.step(1).micro_batches, 1.0, devices, objective)
    data.close()
    return loss, {name: gather(p.grad) for name, p in named_parameters(model) if p.grad is not None}


def check(root: Path, folder: Path, variant: str, training: str, world: Devices) -> None:
    want_loss, want, accuracy = expected(root, variant)
    loss, gradients = measure(folder, variant, training, world)
    assert loss.mean == pytest.approx(want_loss, rel=1e-5)
    assert loss.metrics["reward_accuracy"] == pytest.approx(accuracy)
    for name, gradient in want.items():
        found = gradients[name][: gradient.shape[0]].double()
        assert (found - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_papers(root, variant):
    with process_group.connect() as world:
        check(root, root, variant, "batch { global_blocks: 8 micro_blocks: 2 } loss { chunk_tokens: 16 }", world)


def test_packing_and_micro_batches_do_not_matter(root):
    with process_group.connect() as world:
        check(root, root / "alone", "sigmoid", "batch { global_blocks: 8 micro_blocks: 4 }", world)


def check_as_rank(root: Path) -> None:
    with process_group.connect() as world:
        check(root, root, "sigmoid", "batch { global_blocks: 8 }", world)
        tensor = "batch { global_blocks: 8 micro_blocks: 2 } parallelism { tensor_parallel_size: 2 }"
        check(root, root, "sigmoid", tensor, world)


def test_two_ranks_that_share_or_split_the_model_do_not_matter(root):
    run_ranks(2, check_as_rank, root)


@pytest.mark.parametrize("lora", ["", "lora { rank: 8 }"], ids=["full", "lora"])
def test_raises_the_accuracy_on_held_out_pairs(lora, tmp_path):
    write_tiny_llama(tmp_path / "model")
    write_tiny_pairs(tmp_path / "pairs", tmp_path / "model", 48, 16)
    training = "max_steps: 24 batch { global_blocks: 8 micro_blocks: 8 } checkpointing { every_steps: 12 }"
    job = tiny_pairs_job(tmp_path, "dpo", "", training, lora)
    job.stages[0].dpo.training.optimizer.learning_rate = 1e-2 if lora else 1e-3
    artifact = run_stage(job, "dpo")
    metrics = artifact.model.metrics
    # Policy and reference are one at first, however the reference is made.
    assert metrics["first_evaluation_reward_accuracy"] == 0.5
    assert metrics["first_evaluation_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["evaluation_reward_accuracy"] > 0.9
    assert metrics["evaluation_chosen_reward"] > metrics["evaluation_rejected_reward"]

    folder = RunFolder.of(job)
    first = next(folder.artifact("dpo").glob("*.safetensors")).read_bytes()
    shutil.rmtree(folder.artifact("dpo"))
    shutil.rmtree(folder.checkpoints("dpo") / "step-00000024")
    assert run_stage(job, "dpo").model.metrics == metrics
    assert next(folder.artifact("dpo").glob("*.safetensors")).read_bytes() == first
    assert any("resumed from step-00000012" in event.message for event in follow(folder.events("dpo"))[0])


def test_a_reference_with_another_vocabulary_is_refused(root, tmp_path):
    write_tiny_llama(tmp_path / "reference", vocabulary_size=400)
    fields = REFERENCE.format(root=tmp_path)
    job = tiny_pairs_job(root, "dpo", fields, "max_steps: 1", storage=str(tmp_path))
    with pytest.raises(UserError, match=r"vocabulary of 400 tokens and the trained model one of 500"):
        run_stage(job, "dpo")


@pytest.mark.parametrize("lora", ["", "lora { rank: 8 }"], ids=["frozen copy", "adapters off"])
def test_values_worked_out_beforehand_train_the_same_and_are_taken_over(lora, tmp_path, monkeypatch):
    write_tiny_llama(tmp_path / "model")
    write_tiny_pairs(tmp_path / "pairs", tmp_path / "model", 8, 3)
    training = "max_steps: 4 batch { global_blocks: 4 micro_blocks: 2 } checkpointing { every_steps: 2 keep_last: 9 }"
    plain = tiny_pairs_job(tmp_path, "dpo", "", training, lora, storage="plain")
    job = tiny_pairs_job(tmp_path, "dpo", "precompute_reference: true", training, lora)
    expected, metrics = (run_stage(each, "dpo").model.metrics for each in (plain, job))
    for name in ("loss", "first_evaluation_loss", "evaluation_loss", "evaluation_reward_margin"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name

    folder = RunFolder.of(job)
    values = folder.stage("dpo") / "reference-log-probabilities.npz"
    first = values.read_bytes()
    shutil.rmtree(folder.artifact("dpo"))
    shutil.rmtree(folder.checkpoints("dpo") / "step-00000004")
    monkeypatch.setattr(dpo.Dpo, "_live_reference", None)  # a call of it would be an error
    assert run_stage(job, "dpo").model.metrics == metrics
    assert values.read_bytes() == first


def precompute_as_rank(job) -> None:
    run_stage(job, "dpo")


def test_two_ranks_work_out_what_one_does(tmp_path):
    write_tiny_llama(tmp_path / "model")
    write_tiny_pairs(tmp_path / "pairs", tmp_path / "model", 5, 2)
    training = "max_steps: 1 batch { global_blocks: 4 }"
    jobs = [tiny_pairs_job(tmp_path, "dpo", "precompute_reference: true", training, storage=name) for name in "ab"]
    run_stage(jobs[0], "dpo")
    run_ranks(2, precompute_as_rank, jobs[1])
    one, two = (np.load(RunFolder.of(job).stage("dpo") / "reference-log-probabilities.npz") for job in jobs)
    assert one["example_id"].tolist() == two["example_id"].tolist() and len(one["example_id"]) > 7
    for name in ("chosen", "rejected"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)

"""Reward models against a reference in float64; they learn, are continued, exported, and read by transformers."""

from pathlib import Path

import pytest
import torch
import transformers
from google.protobuf import text_format

from finecut.dataprep.shards import SplitReader
from finecut.proto import job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import RunFolder
from finecut.trainer.config import Precision
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model, save_model
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization, registry
from finecut.trainer.recipes.reward_model import BradleyTerry
from finecut.trainer.recipes.supervised import build_model
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.recipes.testing_pairs import tiny_pairs_job, write_tiny_pairs
from finecut.trainer.stage import run_stage
from finecut.trainer.testing import write_tiny_llama

CENTERING = 0.1
HEAD = "head { scalar { initial_std: 0.5 } }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_tiny_llama(root / "model")
    write_tiny_pairs(root / "pairs", root / "model", 5, 2)
    return root


def measure(root: Path, training: str, world: Devices, saved: Path | None = None) -> tuple:
    """One step through the trainer's own path; the untrained model is written to `saved`."""
    job = tiny_pairs_job(root, "reward_model", f"centering: {CENTERING}", f"epochs: 1 {training}", HEAD)
    recipe = registry.recipe_of(job.stages[0])
    config = recipe.config
    devices = mesh.arrange(world, config.training.parallelism)
    source = locate_model(root / "model")
    decoder_config = DecoderConfig.from_folder(source.base)
    model = build_model(config, decoder_config, source, Precision.FP32, devices, recipe.output_head(source))
    if saved:
        save_model(model, saved, source.base, torch.float32)
    data = open_data(root / "pairs", source, decoder_config, config.training, devices, kind=recipe.data_kind)
    objective = BradleyTerry(recipe.config.centering)
    loss = optimization.forward_backward(model, data.train.step(1).micro_batches, 1.0, devices, objective)
    data.close()
    return loss, {name: gather(p.grad) for name, p in named_parameters(model) if p.grad is not None}


def scores(model: transformers.PreTrainedModel, root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of each pair's answers, [pairs, 2], one document at a time, and their margins."""
    reader = SplitReader(root / "pairs", split)
    blocks = reader.read(range(len(reader)))
    found, margins = [], []
    for n in range(len(reader)):
        for document in range(int(blocks.document_id_NL[n].max()) + 1):
            ids_L = torch.from_numpy(blocks.input_ids_NL[n][blocks.document_id_NL[n] == document]).long()
            found.append(model(ids_L[None]).logits[0, 0])
            if document % 2 == 0:
                margins.append(float(blocks.margin_NP[n, document // 2]))
    return torch.stack(found).view(-1, 2), torch.tensor(margins, dtype=torch.float64).nan_to_num()


def check(root: Path, training: str, world: Devices, saved: Path) -> None:
    loss, gradients = measure(root, training, world, saved)
    world.barrier()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float64)
    score_N2, margin_N = scores(model, root, "train")
    assert margin_N.any() and not margin_N.all()
    difference_N = score_N2[:, 0] - score_N2[:, 1]
    want = torch.log1p(torch.exp(-(difference_N - margin_N))) + CENTERING * score_N2.sum(1) ** 2
    want.mean().backward()
    assert loss.mean == pytest.approx(want.mean().item(), rel=1e-5)
    assert loss.metrics["accuracy"] == pytest.approx((difference_N > 0).double().mean().item())
    pairs = {"score.weight": model.score, "layers.1.mlp.up_proj.weight": model.model.layers[1].mlp.up_proj}
    for name, module in pairs.items():
        error = (gradients[name].double() - module.weight.grad).abs().max()
        assert error < 2e-5 * module.weight.grad.abs().max(), name


@pytest.mark.parametrize("micro_blocks", [1, 4])
def test_loss_and_gradients_are_those_of_the_papers(root, micro_blocks, tmp_path):
    with process_group.connect() as world:
        check(root, f"batch {{ global_blocks: 8 micro_blocks: {micro_blocks} }}", world, tmp_path)


def check_as_rank(root: Path, saved: Path, parallelism: str) -> None:
    with process_group.connect() as world:
        check(root, f"batch {{ global_blocks: 8 }} {parallelism}", world, saved)


@pytest.mark.parametrize("parallelism", ["", "parallelism { tensor_parallel_size: 2 }"], ids=["shard", "tensor"])
def test_two_ranks_do_not_matter(root, tmp_path, parallelism):
    run_ranks(2, check_as_rank, root, tmp_path, parallelism)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    difference = torch.tensor([2.0, 2.0, 2.0, -2.0, 0.1])  # confidence 0.88 four times, right three times; 0.52, right
    sums = {"confidence_by_bin": torch.zeros(10), "correct_by_bin": torch.zeros(10)}
    for value in difference:
        sure = torch.sigmoid(value.abs())
        place = int((sure - 0.5) * 20)
        sums["confidence_by_bin"][place] += sure
        sums["correct_by_bin"][place] += float(value > 0)
    found = BradleyTerry(0.0).metrics(sums, 5)["calibration_error"]
    want = (4 * abs(torch.sigmoid(torch.tensor(2.0)).item() - 0.75) + (1 - torch.sigmoid(torch.tensor(0.1)).item())) / 5
    assert found == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("lora", ["", "lora { rank: 8 }"], ids=["full", "lora"])
def test_learns_and_is_continued_and_exported(lora, tmp_path):
    write_tiny_llama(tmp_path / "model")
    write_tiny_pairs(tmp_path / "pairs", tmp_path / "model", 128, 16)
    training = f"""
        batch {{ global_blocks: 8 micro_blocks: 8 }} schedule {{ warmup_steps: 0 }}
        optimizer {{ learning_rate: {1e-2 if lora else 2e-3} }}
    """
    stage = 'reward_model {{ model {{ path: "{}" {} }} data: "{}" training {{ max_steps: {} {} }} }}'
    text = f"""
        name: "tiny"
        storage {{ root: "{tmp_path}/runs" }}
        stages {{ name: "first" {stage.format(tmp_path / "model", lora, tmp_path / "pairs", 48, training)} }}
        stages {{ name: "second" {stage.format("@first", lora, tmp_path / "pairs", 1, training)} }}
        stages {{ name: "export" export {{ model: "@first" weight_type: WEIGHT_FP32 }} }}
    """
    job = resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=tmp_path)
    metrics = run_stage(job, "first").model.metrics
    assert metrics["first_evaluation_accuracy"] == 0.5  # a new head says 0 to everything
    assert metrics["evaluation_accuracy"] > 0.85
    assert 0 <= metrics["evaluation_calibration_error"] < 0.3
    assert run_stage(job, "second").model.metrics["first_evaluation_loss"] == pytest.approx(metrics["evaluation_loss"])

    run_stage(job, "export")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(RunFolder.of(job).artifact("export"))
    assert model.config.num_labels == 1
    with torch.no_grad():
        score_N2, _ = scores(model, tmp_path, "evaluation")
    accuracy = (score_N2[:, 0] > score_N2[:, 1]).double().mean().item()
    assert accuracy == pytest.approx(metrics["evaluation_accuracy"])

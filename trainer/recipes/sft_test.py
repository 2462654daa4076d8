"""The recipe as a whole: it learns, it resumes exactly, and it leaves what it promises."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint import FileSystemReader

from finecut.dataprep import tokenization
from finecut.dataprep.documents import Document
from finecut.dataprep.shards import ShardWriter
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.trainer import stage as trainer_stage
from finecut.trainer.config import Precision
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.recipes import optimization, supervised
from finecut.trainer.recipes.config import SftConfig
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs

LORA = "lora { rank: 4 dropout: 0.2 }"
SIX_STEPS = "max_steps: 6 batch { global_blocks: 4 } checkpointing { every_steps: 3 keep_last: 3 }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    return root


def train(job: job_pb2.JobConfig) -> artifact_pb2.Artifact:
    artifact = trainer_stage.run_stage(job, "sft")
    assert artifact is not None
    return artifact


def train_as_rank(job: job_pb2.JobConfig) -> None:
    trainer_stage.run_stage(job, "sft")


def interrupted_at_step_3(whole: job_pb2.JobConfig, job: job_pb2.JobConfig) -> None:
    """Gives `job` the run folder of `whole` as it was when it died in step 4, 5 or 6."""
    shutil.copytree(RunFolder.of(whole).root, RunFolder.of(job).root)
    shutil.rmtree(RunFolder.of(job).artifact("sft"))
    shutil.rmtree(RunFolder.of(job).checkpoints("sft") / "step-00000006")


def weights(job: job_pb2.JobConfig) -> Path:
    return next(RunFolder.of(job).artifact("sft").glob("*.safetensors"))


def train_state(job: job_pb2.JobConfig) -> dict[str, object]:
    return json.loads((RunFolder.of(job).checkpoints("sft") / "step-00000006" / "train_state.json").read_text())


def messages(job: job_pb2.JobConfig) -> list[str]:
    return [event.message for event in follow(RunFolder.of(job).events("sft"))[0] if event.message]


def curve(job: job_pb2.JobConfig, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(RunFolder.of(job).tensorboard("sft")))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


@pytest.mark.parametrize("lora", ["", "lora { rank: 8 }"], ids=["full", "lora"])
def test_learns_a_tiny_dataset_by_heart(root, lora, tmp_path):
    training = "epochs: 12 batch { global_blocks: 4 micro_blocks: 2 } evaluation { every_steps: 12 }"
    job = tiny_job(root, training, lora, storage=str(tmp_path))
    artifact = train(job)
    losses = [loss for _, loss in curve(job, "train/loss")]
    assert artifact.model.steps == len(losses) == 36
    assert losses[0] > 4
    assert losses[-1] < 0.25 * losses[0]
    metrics = artifact.model.metrics
    assert metrics["evaluation_loss"] < 0.8 * metrics["first_evaluation_loss"]
    assert [step for step, _ in curve(job, "evaluation/loss")] == [0, 12, 24, 36]
    assert artifact.model.adapter is bool(lora)
    assert (Path(artifact.model.base_model) / "config.json").exists()


@pytest.mark.parametrize(
    "lora, precision", [("", "FP32"), (LORA, "FP32"), ("", "FP16")], ids=["full", "lora-with-dropout", "fp16"]
)
def test_resumed_run_is_bit_identical(root, lora, precision, tmp_path):
    training = f"{SIX_STEPS} precision: {precision}"
    whole = tiny_job(root, training, lora, storage=str(tmp_path / "whole"))
    expected = train(whole)
    resumed = tiny_job(root, training, lora, storage=str(tmp_path / "resumed"))
    interrupted_at_step_3(whole, resumed)
    artifact = train(resumed)
    assert "resumed from step-00000003" in messages(resumed)
    assert weights(resumed).read_bytes() == weights(whole).read_bytes()
    assert artifact.model.metrics == expected.model.metrics
    assert train_state(resumed) == train_state(whole)
    # Steps 4 to 6 were recorded twice; the curve has them once.
    assert curve(resumed, "train/loss") == curve(whole, "train/loss")
    assert [step for step, _ in curve(resumed, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_lora_checkpoint_holds_the_adapters_and_nothing_of_the_base(root, tmp_path):
    job = tiny_job(root, SIX_STEPS, LORA, storage=str(tmp_path))
    train(job)
    reader = FileSystemReader(RunFolder.of(job).checkpoints("sft") / "step-00000003" / "tensors")
    names = [
        name for name in reader.read_metadata().state_dict_metadata if not name.startswith("optimizer.param_groups")
    ]
    assert len(names) == 2 * 7 * 2 * 4  # layers, targets, A and B, each with two moments and a step count
    assert all("lora_" in name for name in names)


def test_dropout_matters_so_that_exact_resume_needs_the_random_state(root, tmp_path):
    one = tiny_job(root, SIX_STEPS, LORA, storage=str(tmp_path / "one"))
    other = tiny_job(root, SIX_STEPS, LORA.replace("0.2", "0.0"), storage=str(tmp_path / "other"))
    assert train(one).model.metrics["loss"] != train(other).model.metrics["loss"]


def test_one_rank_resumes_as_two(root, tmp_path):
    whole = tiny_job(root, SIX_STEPS, storage=str(tmp_path / "whole"))
    train(whole)
    resumed = tiny_job(root, SIX_STEPS, storage=str(tmp_path / "resumed"))
    interrupted_at_step_3(whole, resumed)
    run_ranks(2, train_as_rank, resumed)
    expected, found = load_file(weights(whole)), load_file(weights(resumed))
    assert expected.keys() == found.keys()
    assert any("attention work of the busiest rank" in message for message in messages(resumed))
    balanced, in_order = (dict(curve(resumed, f"train/attention_imbalance{kind}")) for kind in ("", "_in_order"))
    assert balanced.keys() == in_order.keys() == set(range(1, 7))
    assert all(1 <= balanced[step] <= in_order[step] for step in (4, 5, 6))
    largest = max((expected[name] - found[name]).abs().max().item() for name in expected)
    assert largest < 1e-3  # Adam divides by the gradient's size: rounding in tiny gradients shows in the weights
    artifact = artifacts.read(RunFolder.of(resumed).artifact("sft"), verify=True)
    before = artifacts.read(RunFolder.of(whole).artifact("sft"))
    assert artifact.model.metrics["loss"] == pytest.approx(before.model.metrics["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def documents_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documents")
    write_tiny_inputs(root, packed=False)
    return root


def test_resumed_run_that_packs_on_the_fly_is_bit_identical(documents_root, tmp_path):
    whole = tiny_job(documents_root, SIX_STEPS, storage=str(tmp_path / "whole"))  # two epochs: 24 blocks of about 12
    train(whole)
    resumed = tiny_job(documents_root, SIX_STEPS, storage=str(tmp_path / "resumed"))
    interrupted_at_step_3(whole, resumed)
    train(resumed)
    assert "resumed from step-00000003" in messages(resumed)
    assert weights(resumed).read_bytes() == weights(whole).read_bytes()
    assert train_state(resumed) == train_state(whole)
    assert curve(resumed, "train/loss") == curve(whole, "train/loss")
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_one_rank_that_packs_on_the_fly_resumes_as_two(documents_root, tmp_path):
    whole = tiny_job(documents_root, SIX_STEPS, storage=str(tmp_path / "whole"))
    expected = train(whole)
    resumed = tiny_job(documents_root, SIX_STEPS, storage=str(tmp_path / "resumed"))
    interrupted_at_step_3(whole, resumed)
    run_ranks(2, train_as_rank, resumed)
    artifact = artifacts.read(RunFolder.of(resumed).artifact("sft"))
    for name in ("loss", "evaluation_loss"):
        assert artifact.model.metrics[name] == pytest.approx(expected.model.metrics[name], rel=1e-4)


def test_other_windows_are_other_data(documents_root, tmp_path):
    shutil.copytree(documents_root, tmp_path, dirs_exist_ok=True)
    job = tiny_job(tmp_path, SIX_STEPS)
    train(job)
    shutil.rmtree(RunFolder.of(job).artifact("sft"))
    manifest = artifacts.read(tmp_path / "data")
    manifest.data.window_documents += 1
    artifacts.write(tmp_path / "data", manifest)
    with pytest.raises(UserError, match="was made with another data than this run's"):
        train(job)


def test_torn_checkpoint_is_skipped_for_the_one_before(root, tmp_path):
    whole = tiny_job(root, SIX_STEPS, storage=str(tmp_path / "whole"))
    train(whole)
    torn = tiny_job(root, SIX_STEPS, storage=str(tmp_path / "torn"))
    shutil.copytree(RunFolder.of(whole).root, RunFolder.of(torn).root)
    shutil.rmtree(RunFolder.of(torn).artifact("sft"))
    shard = next((RunFolder.of(torn).checkpoints("sft") / "step-00000006" / "tensors").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    train(torn)
    assert f"checkpoint step-00000006 is passed over: tensors/{shard.name} is damaged" in messages(torn)
    assert "resumed from step-00000003" in messages(torn)
    assert weights(torn).read_bytes() == weights(whole).read_bytes()


def test_finished_stage_is_not_run_again(root, tmp_path):
    job = tiny_job(root, SIX_STEPS, LORA, storage=str(tmp_path))
    first = train(job)
    changed_at = weights(job).stat().st_mtime_ns
    assert train(job) == first
    assert weights(job).stat().st_mtime_ns == changed_at


def test_another_config_is_refused_with_and_without_an_artifact(root, tmp_path):
    train(tiny_job(root, SIX_STEPS, LORA, storage=str(tmp_path)))
    other = tiny_job(root, SIX_STEPS + " seed: 5", LORA, storage=str(tmp_path))
    with pytest.raises(UserError, match=r"was made with another config than this one; choose another storage.root"):
        train(other)
    shutil.rmtree(RunFolder.of(other).artifact("sft"))
    with pytest.raises(UserError, match="step-00000006 was made with another config than this run's"):
        train(other)


def test_other_data_is_refused_on_resume(root, tmp_path):
    shutil.copytree(root / "model", tmp_path / "model")
    write_tiny_inputs(tmp_path)
    job = tiny_job(tmp_path, SIX_STEPS)
    train(job)
    shutil.rmtree(RunFolder.of(job).artifact("sft"))
    shutil.rmtree(tmp_path / "data")
    write_tiny_inputs(tmp_path, num_blocks=13)
    with pytest.raises(UserError, match="was made with another data than this run's"):
        train(job)


def test_non_finite_loss_names_the_step(root, tmp_path):
    job = tiny_job(root, "max_steps: 4", storage=str(tmp_path))
    job.stages[0].sft.training.optimizer.learning_rate = 1e30  # validation would not let it pass
    with pytest.raises(FloatingPointError, match="step 2: the loss or a gradient is not finite"):
        train(job)


@pytest.mark.parametrize("precision", ["BF16", "FP16"])
def test_learns_in_half_precision(root, precision, tmp_path):
    job = tiny_job(root, f"max_steps: 12 batch {{ global_blocks: 12 }} precision: {precision}", storage=str(tmp_path))
    train(job)
    losses = [loss for _, loss in curve(job, "train/loss")]
    assert losses[-1] < 0.7 * losses[0]
    scales = {scale for _, scale in curve(job, "train/loss_scale")}
    assert scales == {1.0} if precision == "BF16" else max(scales) == 65536.0
    assert all(tensor.dtype == torch.float32 for tensor in load_file(weights(job)).values())


def test_fp16_overflow_skips_the_step_and_halves_the_scale(root):
    job = tiny_job(root, "max_steps: 2")
    config = SftConfig.from_proto(job.stages[0].sft)
    with process_group.connect() as devices:
        source = locate_model(root / "model")
        decoder_config = DecoderConfig.from_folder(source.base)
        model = supervised.build_model(config, decoder_config, source, Precision.FP16, devices)
        data = open_data(root / "data", source, decoder_config, config.training, devices)
        optimizer = optimization.adamw(model, config.training.optimizer)
        scaler = LossScaler(enabled=True, scale=2.0**60)
        before = [parameter.full_tensor().clone() for parameter in model.parameters()]
        numbers = supervised.train_step(model, optimizer, scaler, data, config, 1, devices)
        assert numbers.gradient_norm == float("inf") or math.isnan(numbers.gradient_norm)
        assert scaler.scale == 2.0**59
        assert all(torch.equal(a, b.full_tensor()) for a, b in zip(before, model.parameters(), strict=True))
        scaler.scale = 2.0**10
        supervised.train_step(model, optimizer, scaler, data, config, 2, devices)
        assert not any(torch.equal(a, b.full_tensor()) for a, b in zip(before, model.parameters(), strict=True))


def test_tokenizer_that_prepared_other_data_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(UserError, match="was prepared with another tokenizer"):
        train(tiny_job(tmp_path, SIX_STEPS))


GROWTH = 'added_tokens: "<a>" added_tokens: "<b>" semantic_id_count: 10'


def prepare_with_growth(root: Path) -> None:
    """Data as data_prep makes it with the tokens of GROWTH, which occur, as do its semantic ids."""
    write_tiny_inputs(root, num_blocks=4, num_evaluation_blocks=0)
    grown = tokenization.load(root / "model", added_tokens=("<a>", "<b>"))
    manifest = artifacts.read(root / "data")
    manifest.fingerprints.tokenizer = tokenization.fingerprint(grown)
    manifest.data.vocabulary_size = 512
    grown.save_pretrained(root / "data" / tokenization.FOLDER)
    document = Document(np.arange(490, 512, dtype=np.int32), np.arange(22) > 0)
    writer = ShardWriter(root / "data", "train", manifest.data.block_size, 0, max_bytes=1 << 20)
    for _ in range(4):
        writer.add([document])
    manifest.data.splits[0].CopyFrom(writer.close())
    del manifest.files[:]
    artifacts.write(root / "data", manifest)


def test_new_tokens_and_semantic_ids_are_trained_and_saved(tmp_path):
    prepare_with_growth(tmp_path)
    training = "max_steps: 20 batch { global_blocks: 4 }"
    job = tiny_job(tmp_path, training, GROWTH)
    artifact = train(job)
    assert artifact.model.metrics["loss"] < 1
    folder = RunFolder.of(job).artifact("sft")
    assert DecoderConfig.from_folder(folder).vocabulary_size == 512
    tokenizer = tokenization.load(folder)
    assert len(tokenizer) == 502 and artifact.fingerprints.tokenizer == tokenization.fingerprint(tokenizer)
    # A later stage needs to say nothing of it, and may repeat the number of ids.
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(folder, tmp_path / "model")
    for again in ("", "semantic_id_count: 10"):
        assert train(tiny_job(tmp_path, training, again, storage=f"again-{len(again)}")).model.metrics["loss"] < 0.5


def test_new_tokens_beside_adapters_are_trained_into_a_whole_model(tmp_path):
    prepare_with_growth(tmp_path)
    training = "max_steps: 40 batch { global_blocks: 4 }"
    job = tiny_job(tmp_path, training, f"{LORA} {GROWTH}")
    artifact = train(job)
    assert artifact.model.metrics["loss"] < 1 and not artifact.model.adapter
    folder = RunFolder.of(job).artifact("sft")
    assert DecoderConfig.from_folder(folder).vocabulary_size == 512 and not (folder / "adapter_config.json").exists()
    # Adapters go on from there, and the new rows are no longer new.
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(folder, tmp_path / "model")
    again = train(tiny_job(tmp_path, "max_steps: 2 batch { global_blocks: 4 }", LORA, storage="again"))
    assert again.model.adapter and again.model.metrics["loss"] < 1


def test_a_vocabulary_that_the_data_was_not_prepared_with_is_refused(root, tmp_path):
    with pytest.raises(UserError, match=r"set data_prep.tokenization.added_tokens to the same tokens"):
        train(tiny_job(root, SIX_STEPS, GROWTH, storage=str(tmp_path)))
    prepare_with_growth(tmp_path)
    with pytest.raises(UserError, match=r"makes 512 ids and .* has embeddings for 500|semantic_id_count"):
        train(tiny_job(tmp_path, SIX_STEPS))
    with pytest.raises(UserError, match=r"set data_prep.tokenization.added_tokens to the same tokens"):
        train(tiny_job(tmp_path, SIX_STEPS, GROWTH.replace("<b>", "<c>")))


@pytest.mark.parametrize("lora", ["", LORA])
def test_data_prepared_with_another_template_brings_its_tokenizer(root, lora, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    tokenizer = tokenization.load(tmp_path / "model")
    tokenizer.chat_template += "{# another #}"
    tokenizer.save_pretrained(tmp_path / "data" / "tokenizer")
    artifact = artifacts.read(tmp_path / "data")
    artifact.fingerprints.tokenizer = tokenization.fingerprint(tokenizer)
    artifacts.write(tmp_path / "data", artifact)
    job = tiny_job(tmp_path, "max_steps: 1", lora)
    train(job)
    trained = RunFolder.of(job).artifact("sft")
    assert tokenization.load(locate_model(trained).tokenizer).chat_template.endswith("{# another #}")

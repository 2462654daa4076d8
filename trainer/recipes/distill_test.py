"""Distillation against a reference in float64; and it learns."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import UserError, resolve
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes.testing import run_ranks, write_tiny_data
from finecut.trainer.recipes.testing_distill import Variant, check, make_job
from finecut.trainer.stage import run_stage
from finecut.trainer.testing import write_tiny_llama

VARIANTS = {
    "forward": Variant(),
    "forward, hot": Variant(temperature=3),
    "reverse": Variant("REVERSE_KL", temperature=2),
    "jensen-shannon": Variant("JENSEN_SHANNON"),
    "top": Variant(top_k=5, temperature=2),
    "mixed": Variant(hard_label_weight=0.3),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_tiny_llama(root / "model", initializer_range=0.1)
    # Of other sizes than the student.
    write_tiny_llama(root / "teacher", seed=1, hidden_size=96, num_hidden_layers=1, initializer_range=0.1)
    write_tiny_data(root / "data", root / "model", 5)
    return root


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_definitions(root, variant):
    with process_group.connect() as world:
        check(root, VARIANTS[variant], "global_blocks: 8 micro_blocks: 4", world)


def check_as_rank(root: Path) -> None:
    with process_group.connect() as world:
        check(root, VARIANTS["mixed"], "global_blocks: 8", world)
        for variant in ("forward, hot", "reverse", "jensen-shannon", "mixed", "top"):
            check(
                root,
                VARIANTS[variant],
                "global_blocks: 8 micro_blocks: 4",
                world,
                "parallelism { tensor_parallel_size: 2 }",
            )


def test_two_ranks_that_share_or_split_the_models_do_not_matter(root):
    run_ranks(2, check_as_rank, root)


def test_closes_half_of_the_gap_to_the_teacher_on_held_out_data(tmp_path):
    write_tiny_llama(tmp_path / "model", initializer_range=0.1)
    write_tiny_llama(tmp_path / "teacher", seed=1, initializer_range=0.1)
    write_tiny_data(tmp_path / "data", tmp_path / "model", 32, 8)
    job = make_job(tmp_path, "", "max_steps: 40 batch { global_blocks: 8 micro_blocks: 8 }")
    metrics = run_stage(job, "distill").model.metrics
    assert metrics["first_evaluation_divergence"] > 0.1
    assert metrics["first_evaluation_divergence"] == pytest.approx(metrics["first_evaluation_loss"])
    assert metrics["evaluation_divergence"] < 0.5 * metrics["first_evaluation_divergence"]


def test_adapters_close_half_of_the_gap_from_a_trained_start(tmp_path):
    """As distillation is used: the teacher has learned more of what the student has begun to learn."""
    write_tiny_llama(tmp_path / "model")
    write_tiny_data(tmp_path / "data", tmp_path / "model", 32, 8)
    batch = "batch { global_blocks: 8 micro_blocks: 8 } schedule { warmup_steps: 0 }"
    sft = """stages {{ name: "{}" sft {{ model {{ path: "{}" }} data: "{}" training {{
        max_steps: {} optimizer {{ learning_rate: 3e-3 }} {} }} }} }}"""
    text = f"""
        name: "tiny" storage {{ root: "{tmp_path}/runs" }}
        {sft.format("student", tmp_path / "model", tmp_path / "data", 12, batch)}
        {sft.format("teacher", "@student", tmp_path / "data", 40, batch)}
        stages {{ name: "distill" distill {{
          model {{ path: "@student" lora {{ rank: 16 }} }} teacher: "@teacher" data: "{tmp_path / "data"}"
          training {{ max_steps: 40 optimizer {{ learning_rate: 1e-2 }} {batch} }} }} }}
    """
    job = resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=tmp_path)
    student, teacher = (run_stage(job, stage).model.metrics["evaluation_loss"] for stage in ("student", "teacher"))
    assert teacher < student
    metrics = run_stage(job, "distill").model.metrics
    assert metrics["first_evaluation_divergence"] > 0.1
    assert metrics["evaluation_divergence"] < 0.5 * metrics["first_evaluation_divergence"]


def test_a_teacher_with_another_vocabulary_is_refused(root, tmp_path):
    write_tiny_llama(tmp_path / "teacher", vocabulary_size=400)
    job = make_job(root, "", "max_steps: 1", storage=str(tmp_path))
    job.stages[0].distill.teacher = str(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher: .* vocabulary of 400 tokens and the trained model one of 500"):
        run_stage(job, "distill")

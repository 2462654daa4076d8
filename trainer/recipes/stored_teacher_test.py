"""A teacher that is kept on disk teaches what it would have taught beside the student."""

import json
from pathlib import Path

import numpy as np
import pytest

from finecut.proto.config import UserError
from finecut.proto.run import RunFolder
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes import frozen
from finecut.trainer.recipes.testing import run_ranks, write_tiny_data
from finecut.trainer.recipes.testing_distill import Variant, check, make_job
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.stage import run_stage
from finecut.trainer.teachers import shards
from finecut.trainer.teachers.rows import RowReader
from finecut.trainer.teachers.shards import ShardFile

KEPT = "teacher_cache { }"
BATCH = "global_blocks: 8 micro_blocks: 4"
# Some 50 tokens, which is not two blocks, where 5 likeliest ones are kept.
SHARD_BYTES = 50 * (8 * 5 + 4)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_SHARD_BYTES", SHARD_BYTES)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_tiny_policy(root / "model", initializer_range=0.1)
    # Of other sizes than the student.
    write_tiny_policy(root / "teacher", seed=1, hidden_size=96, num_hidden_layers=1, initializer_range=0.1)
    write_tiny_data(root / "data", root / "model", 5, 3)
    return root


@pytest.fixture(scope="module")
def documents(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, to be packed while training."""
    folder = tmp_path_factory.mktemp("documents")
    for name, target in (("model", "model"), ("teacher", "teacher"), ("packed", "data")):
        (folder / name).symlink_to(root / target)
    write_tiny_data(folder / "data", root / "model", 5, 3, packed=False)
    return folder


def run(root: Path, storage: str, fields: str = f"top_k: 5 {KEPT}"):
    """Two epochs; what the stage says of the run."""
    return run_stage(make_job(root, fields, "epochs: 2 batch { global_blocks: 4 }", storage=storage), "distill").model


def files_of(root: Path, storage: str) -> dict[str, int]:
    """When each of the teacher's shards was written, by name."""
    folder = root / storage / "tiny" / "stages" / "distill" / "teacher"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/*")}


@pytest.mark.parametrize(
    "variant",
    [
        Variant(top_k=5, temperature=2, hard_label_weight=0.3),
        Variant("REVERSE_KL", top_k=7),
        Variant("JENSEN_SHANNON", temperature=2, top_k=3),
    ],
    ids=lambda variant: variant.divergence,
)
def test_loss_and_gradients_are_those_of_the_definitions(root, variant):
    with process_group.connect() as world:
        check(root, variant, BATCH, world, cache=KEPT)


def test_documents_that_are_packed_while_training_find_their_own(documents):
    with process_group.connect() as world:
        check(documents, Variant(top_k=5), BATCH, world, cache=KEPT)


def check_as_rank(root: Path, documents: Path) -> None:
    shards._SHARD_BYTES = SHARD_BYTES
    with process_group.connect() as world:
        check(root, Variant(top_k=4), "global_blocks: 8", world, cache=KEPT)
        check(documents, Variant(top_k=4), "global_blocks: 8", world, cache=KEPT)
        split = "parallelism { tensor_parallel_size: 2 }"
        check(root, Variant("REVERSE_KL", top_k=6), BATCH, world, split, cache=KEPT)


def test_two_ranks_share_the_work_and_the_shards(root, documents):
    run_ranks(2, check_as_rank, root, documents)


def test_trains_and_evaluates_as_with_the_teacher_in_memory(root):
    beside, kept = run(root, "beside", "top_k: 5"), run(root, "kept")
    assert kept.metrics.keys() == beside.metrics.keys() and kept.steps == beside.steps
    for name, value in beside.metrics.items():
        assert kept.metrics[name] == pytest.approx(value, rel=1e-4), name
    events = (root / "kept" / "tiny" / "stages" / "distill" / "events.jsonl").read_text()
    assert "shards made in" in events and "the teacher's 5 likeliest tokens are kept" in events


def test_only_what_is_torn_or_foreign_is_made_anew(root):
    first = run(root, "resumed")
    before = files_of(root, "resumed")
    assert len([name for name in before if name.startswith("train")]) >= 3
    folder = next((root / "resumed" / "tiny" / "stages" / "distill" / "teacher").iterdir())
    torn, foreign, damaged = (folder / f"train-0000{n}.safetensors" for n in range(3))
    foreign.write_bytes((folder / "evaluation-00000.safetensors").read_bytes())
    damaged.write_bytes(_with_another_number(damaged.read_bytes()))
    torn.write_bytes(torn.read_bytes()[:-7])
    _forget_result(root, "resumed")
    second = run(root, "resumed")
    after = files_of(root, "resumed")
    assert {name for name in before if after[name] != before[name]} == {torn.name, foreign.name, damaged.name}
    assert dict(second.metrics) == pytest.approx(dict(first.metrics), rel=1e-6)


def test_a_whole_cache_needs_no_teacher_in_memory_and_another_teacher_gets_its_own(root, tmp_path, monkeypatch):
    shared = f'top_k: 5 teacher_cache {{ folder: "{tmp_path}" }}'
    first = run(root, "first", shared)
    loaded = []
    load = frozen.load_role
    monkeypatch.setattr(frozen, "load_role", lambda path, role, *rest: loaded.append(path) or load(path, role, *rest))
    assert dict(run(root, "second", shared).metrics) == pytest.approx(dict(first.metrics), rel=1e-6)
    assert not loaded
    write_tiny_policy(tmp_path / "teacher", seed=2, initializer_range=0.1)
    job = make_job(root, shared, "epochs: 2 batch { global_blocks: 4 }", storage="third")
    job.stages[0].distill.teacher = str(tmp_path / "teacher")
    other = run_stage(job, "distill").model
    assert loaded and other.metrics["first_evaluation_loss"] != pytest.approx(first.metrics["first_evaluation_loss"])


def test_vllm_keeps_what_a_forward_pass_keeps(root):
    run(root, "forward", f"top_k: 40 {KEPT}")
    run(root, "engine", "top_k: 40 teacher_cache { maker: VLLM }")
    assert files_of(root, "forward").keys() == files_of(root, "engine").keys()
    forward, engine = (
        next((root / storage / "tiny" / "stages" / "distill" / "teacher").iterdir())
        for storage in ("forward", "engine")
    )
    for split in ("train", "evaluation"):
        num_tokens_R = RowReader(root / "data", split).num_tokens_R
        for shard in shards.plan(split, num_tokens_R, 40):
            for row in shard.rows:
                ours, theirs = ShardFile(forward, shard).read(row), ShardFile(engine, shard).read(row)
                np.testing.assert_allclose(theirs.log_probs_NK, ours.log_probs_NK, atol=2e-5)
                np.testing.assert_allclose(theirs.rest_N, ours.rest_N, atol=2e-5)
                assert (theirs.token_ids_NK == ours.token_ids_NK).mean() > 0.99  # ties apart


def test_as_many_tokens_as_the_vocabulary_has_are_refused(root):
    with pytest.raises(UserError, match="top_k: 500 is not less than the 500 tokens of the vocabulary"):
        run(root, "all", f"top_k: 500 {KEPT}")


def test_a_teacher_with_another_vocabulary_is_refused_before_it_is_asked(root, tmp_path):
    write_tiny_policy(tmp_path / "teacher", vocabulary_size=400)
    job = make_job(root, "top_k: 5 teacher_cache { maker: VLLM }", "max_steps: 1", storage="other")
    job.stages[0].distill.teacher = str(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher: .* vocabulary of 400 tokens and the trained model one of 500"):
        run_stage(job, "distill")


def test_an_adapter_is_not_asked_in_vllm(root, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(root / "teacher")}))
    job = make_job(root, "top_k: 5 teacher_cache { maker: VLLM }", "max_steps: 1", storage="adapter")
    job.stages[0].distill.teacher = str(tmp_path)
    with pytest.raises(UserError, match=r"is an adapter, .* export it MERGED"):
        run_stage(job, "distill")


def _with_another_number(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-20] ^= 1
    return bytes(changed)


def _forget_result(root: Path, storage: str) -> None:
    """As if it had been killed before its first checkpoint."""
    job = make_job(root, storage=storage)
    run_folder = RunFolder.of(job)
    for path in (run_folder.artifact("distill") / "manifest.json", run_folder.checkpoints("distill")):
        path.rename(path.with_suffix(".old"))

"""A teacher that is kept on disk teaches what it would have taught beside the student."""

import json
from pathlib import Path

import numpy as np
import pytest

from finecut.proto.config import UserError
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
TOP_K = 25  # more than vLLM gives without being told
# Some 50 tokens, which is not two blocks.
SHARD_BYTES = 50 * (8 * TOP_K + 4)


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


def run(root: Path, storage: str, cache: str = "", teacher: str = "teacher"):
    """Trains in a storage of its own; what the stage says of it."""
    job = make_job(root, f"top_k: {TOP_K} {cache}", "max_steps: 2 batch { global_blocks: 4 }", storage=storage)
    job.stages[0].distill.teacher = str(root / teacher)
    return run_stage(job, "distill").model


@pytest.fixture(scope="module")
def shared(root: Path) -> str:
    """A cache that several runs may use."""
    return f'teacher_cache {{ folder: "{root / "shared"}" }}'


@pytest.fixture(scope="module")
def first(root: Path, shared: str):
    """The run that fills it."""
    return run(root, "first", shared)


def files_of(folder: Path) -> dict[str, Path]:
    """The shards of the only teacher that is kept there, by name."""
    (of_teacher,) = folder.iterdir()
    return {path.name: path for path in of_teacher.iterdir()}


@pytest.mark.parametrize(
    "variant",
    [
        Variant(top_k=TOP_K, temperature=2, hard_label_weight=0.3),
        Variant("JENSEN_SHANNON", temperature=2, top_k=3),
    ],
    ids=lambda variant: variant.divergence,
)
def test_loss_and_gradients_are_those_of_the_definitions(root, variant):
    with process_group.connect() as world:
        check(root, variant, BATCH, world, cache=KEPT)


def test_documents_that_are_packed_while_training_find_their_own(documents):
    with process_group.connect() as world:
        check(documents, Variant(top_k=TOP_K), BATCH, world, cache=KEPT)


def check_as_rank(root: Path, documents: Path) -> None:
    shards._SHARD_BYTES = SHARD_BYTES
    with process_group.connect() as world:
        check(documents, Variant(top_k=TOP_K), BATCH, world, cache=KEPT)
        split = "parallelism { tensor_parallel_size: 2 }"
        check(root, Variant("REVERSE_KL", top_k=TOP_K), BATCH, world, split, cache=KEPT)


def test_two_ranks_share_the_work_and_the_shards(root, documents):
    run_ranks(2, check_as_rank, root, documents)


def test_trains_and_evaluates_as_with_the_teacher_in_memory(root, first):
    beside = run(root, "beside")
    assert first.metrics.keys() == beside.metrics.keys()
    assert dict(first.metrics) == pytest.approx(dict(beside.metrics), rel=1e-4)
    events = (root / "first" / "tiny" / "stages" / "distill" / "events.jsonl").read_text()
    assert "shards made in" in events and f"the teacher's {TOP_K} likeliest tokens are kept" in events


def test_a_whole_cache_needs_no_teacher_in_memory(root, shared, first, monkeypatch):
    def load_role(*arguments):
        raise AssertionError("loaded")

    monkeypatch.setattr(frozen, "load_role", load_role)
    assert dict(run(root, "second", shared).metrics) == pytest.approx(dict(first.metrics), rel=1e-6)


def test_vllm_keeps_what_a_forward_pass_keeps(root, first):
    engine = run(root, "engine", "teacher_cache { maker: VLLM }")
    assert dict(engine.metrics) == pytest.approx(dict(first.metrics), rel=1e-3)
    ours = files_of(root / "shared")
    theirs = files_of(root / "engine" / "tiny" / "stages" / "distill" / "teacher")
    assert ours.keys() == theirs.keys()
    for split in ("train", "evaluation"):
        for shard in shards.plan(split, RowReader(root / "data", split).num_tokens_R, TOP_K):
            files = [ShardFile(found[shard.path(Path()).name].parent, shard) for found in (ours, theirs)]
            for row in shard.rows:
                forward, asked = (file.read(row) for file in files)
                np.testing.assert_allclose(asked.log_probs_NK, forward.log_probs_NK, atol=2e-5)
                np.testing.assert_allclose(asked.rest_N, forward.rest_N, atol=2e-5)
                assert (asked.token_ids_NK == forward.token_ids_NK).mean() > 0.99  # ties apart


def test_only_what_is_torn_or_foreign_is_made_anew(root, shared, first):
    files = files_of(root / "shared")
    torn, foreign, damaged = (files[f"train-0000{n}.safetensors"] for n in range(3))
    foreign.write_bytes(files["evaluation-00000.safetensors"].read_bytes())
    damaged.write_bytes(_with_another_number(damaged.read_bytes()))
    torn.write_bytes(torn.read_bytes()[:-7])
    before = {name: path.stat().st_mtime_ns for name, path in files.items()}
    assert dict(run(root, "third", shared).metrics) == pytest.approx(dict(first.metrics), rel=1e-6)
    anew = {name for name, path in files.items() if path.stat().st_mtime_ns != before[name]}
    assert anew == {torn.name, foreign.name, damaged.name}


def test_another_teacher_is_asked_itself(root, shared, first):
    write_tiny_policy(root / "other", seed=2, initializer_range=0.1)
    other = run(root, "fourth", shared, "other")
    assert len(list((root / "shared").iterdir())) == 2
    assert other.metrics["first_evaluation_loss"] != pytest.approx(first.metrics["first_evaluation_loss"], rel=1e-3)


def test_as_many_tokens_as_the_vocabulary_has_are_refused(root):
    job = make_job(root, f"top_k: 500 {KEPT}", "max_steps: 1", storage="all")
    with pytest.raises(UserError, match="top_k: 500 is not less than the 500 tokens of the vocabulary"):
        run_stage(job, "distill")


def test_a_teacher_with_another_vocabulary_is_refused_before_it_is_asked(root):
    write_tiny_policy(root / "small", vocabulary_size=400)
    with pytest.raises(UserError, match=r"teacher: .* vocabulary of 400 tokens and the trained model one of 500"):
        run(root, "vocabulary", "teacher_cache { maker: VLLM }", "small")


def test_an_adapter_is_not_asked_in_vllm(root):
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(root / "teacher")})
    )
    with pytest.raises(UserError, match=r"is an adapter, .* export it MERGED"):
        run(root, "adapted", "teacher_cache { maker: VLLM }", "adapter")


def _with_another_number(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[-20] ^= 1
    return bytes(changed)

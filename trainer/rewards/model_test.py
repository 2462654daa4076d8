"""Scores of a reward model on packed rows against transformers, one answer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from finecut.proto.config import UserError
from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, materialize, save_model
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import registry
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.recipes.testing_pairs import tiny_pairs_job, write_tiny_pairs
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.rewards.model import ModelScorer, load_scorer
from finecut.trainer.testing import write_tiny_llama

ROW_TOKENS = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, and a reward model with a random head."""
    root = tmp_path_factory.mktemp("root")
    source = write_tiny_llama(root / "model")
    write_tiny_pairs(root / "pairs", source, 1)
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(source), output_head=OutputHead(1, initial_std=0.5))
    materialize(model, ModelSource(source), "cpu", seed=0)
    (root / "reward").mkdir()
    save_model(model, root / "reward", source, torch.float32)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(root / "reward")
    return root


@pytest.fixture
def devices() -> Iterator[Devices]:
    with process_group.connect() as found:
        yield found


def training(root: Path, fields: str = "") -> TrainingConfig:
    job = tiny_pairs_job(root, "dpo", training=f"max_steps: 1 batch {{ micro_blocks: 2 }} {fields}")
    return registry.recipe_of(job.stages[0]).config.training


def load(root: Path, devices: Devices, name: str = "reward", fields: str = "", row_tokens: int = ROW_TOKENS):
    settings = training(root, fields)
    devices = mesh.arrange(devices, settings.parallelism)
    return load_scorer(root / name, root / "model", settings, Precision.FP32, devices, row_tokens)


def answers(root: Path, count: int) -> list[Answer]:
    """Of many lengths; every second one ends its turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        prompt, text = (tuple(random.integers(10, 90, random.integers(1, 25)).tolist()) for _ in range(2))
        found.append(Answer(f"a/{number}", "", "", {}, prompt, (*text, end) if number % 2 else text))
    return found


@torch.no_grad()
def expected(root: Path, answer: Answer) -> float:
    """As in the data that a reward model is trained on, a line break follows the end of a turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(root / "reward")
    ids = [*answer.prompt_ids, *answer.answer_ids]
    if tokenizer.decode(ids[-1]) == "<|im_end|>":
        ids += tokenizer("\n", add_special_tokens=False)["input_ids"]
    return float(model(torch.tensor([ids])).logits[0, 0])


def test_packed_rows_score_as_transformers_does_one_by_one(root: Path, devices: Devices) -> None:
    found = load(root, devices).score(answers(root, 9))
    want = [expected(root, answer) for answer in answers(root, 9)]
    assert found == pytest.approx(want, abs=1e-4)
    assert np.std(want) > 0.1


def test_no_answers_and_answers_that_do_not_fit(root: Path, devices: Devices) -> None:
    scorer = load(root, devices)
    assert scorer.score([]) == []
    long = Answer("a/1", "", "", {}, (5,) * 40, (6,) * 40)
    found, fine = scorer.score([long, answers(root, 1)[0]])
    assert found == Unscored("it has 80 tokens with its prompt, more than 64") and isinstance(fine, float)


def test_a_number_that_is_not_finite_is_no_score(root: Path, devices: Devices) -> None:
    scorer = load(root, devices)
    broken = ModelScorer(scorer._model, (), ROW_TOKENS, 2, devices)
    with torch.no_grad():
        next(parameter for name, parameter in broken._model.named_parameters() if "score" in name).fill_(torch.nan)
    assert broken.score(answers(root, 1)) == [Unscored("the reward model gave nan")]


def score_as_rank(root: Path, fields: str) -> None:
    with process_group.connect() as devices:
        scorer = load(root, devices, fields=fields)
        own = answers(root, 9) if devices.rank == 0 or "tensor" in fields else []
        want = [expected(root, answer) for answer in own]
        assert scorer.score(own) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("fields", ["", "parallelism { tensor_parallel_size: 2 }"], ids=["sharded", "tensor parallel"])
def test_two_ranks_share_the_model_whatever_they_score(root: Path, fields: str) -> None:
    run_ranks(2, score_as_rank, root, fields)


def test_what_is_no_reward_model_of_the_policys_vocabulary_is_refused(root: Path, devices: Devices) -> None:
    with pytest.raises(UserError, match="model has no scalar head"):
        load(root, devices, "model")
    with pytest.raises(UserError, match="512 positions, and a prompt with its answer may have 1,024 tokens"):
        load(root, devices, row_tokens=1024)
    write_tiny_llama(root / "other", vocabulary_size=480)
    with pytest.raises(UserError, match="was trained with another tokenizer than"):
        load_scorer(root / "reward", root / "other", training(root), Precision.FP32, devices, ROW_TOKENS)

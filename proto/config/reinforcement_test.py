"""What the recipes with rollouts refuse, and their defaults."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2, recipes_pb2, rollout_pb2
from finecut.proto.config import ConfigError, resolve

PREPARE = 'stages { name: "prepare" data_prep { sources { paths: "x.jsonl" %s } tokenization { tokenizer: "model" } } }'
REWARD = 'rewards { regular_expression: "x" }'
TEACHER = 'teacher: "model"'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "x.jsonl").write_text("{}")
    return tmp_path


def resolved(home: Path, stage: str, record: str = "prompt {}") -> job_pb2.JobConfig:
    text = f'name: "tiny" {PREPARE % record} stages {{ name: "train" {stage} }}'
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)


def work(kind: str, fields: str = REWARD, model: str = "") -> str:
    return f'{kind} {{ model {{ path: "model" {model} }} data: "@prepare" {fields} }}'


SPLIT = "rollout { placement: SPLIT"
SPLIT_MATRICES = "training { parallelism { tensor_parallel_size: 2 } }"


@pytest.mark.parametrize(
    ("stage", "record", "path", "message"),
    [
        (work("grpo", ""), "prompt {}", "rewards", "is required"),
        (work("grpo"), "preference {}", "data", "grpo trains on prompts"),
        (work("distill", f"{TEACHER} rollout {{}}"), "", "data", "distill trains on prompts"),
        (work("distill", TEACHER), "prompt {}", "data", "distill trains on documents"),
        (
            work("distill", f"{TEACHER} rollout {{}} hard_label_weight: 0.2"),
            "prompt {}",
            "hard_label_weight",
            "no labels",
        ),
        (work("ppo", model='added_tokens: "<x>"'), "prompt {}", "model.added_tokens", "in a stage before"),
        (work("ppo", model="lora { dropout: 0.1 }"), "prompt {}", "model.lora.dropout", "ratio of probabilities"),
        (work("grpo", model="head { scalar {} }"), "prompt {}", "model.head", "grpo trains the language-model head"),
        (
            work("grpo", f"{REWARD} rollout {{ allocation {{ max_engine_count: 2 }} }}"),
            "prompt {}",
            "rollout.allocation",
            "set placement: SPLIT",
        ),
        (
            work("grpo", f"{REWARD} {SPLIT} allocation {{ min_engine_count: 3 max_engine_count: 2 }} }}"),
            "prompt {}",
            "rollout.allocation.min_engine_count",
            "3 is more than max_engine_count, 2",
        ),
        (
            work("grpo", f"{REWARD} {SPLIT} engine_count: 4 allocation {{ max_engine_count: 2 }} }}"),
            "prompt {}",
            "rollout.engine_count",
            "4 is not from 1 to 2",
        ),
        (work("ppo", f"{REWARD} dual_clip: 1"), "prompt {}", "dual_clip", "greater than 1"),
        (work("grpo", f"{REWARD} minibatches: 3"), "prompt {}", "minibatches", "use 1, 2, 4, 8, 16, 32, 64"),
        (
            work("grpo", f"{REWARD} kl {{ coefficient: 0 target: 1 }}"),
            "prompt {}",
            "kl.target",
            "a weight of 0 stays 0",
        ),
        (
            work("grpo", f"{REWARD} rollout {{ top_p: 0.9 }} {SPLIT_MATRICES}"),
            "prompt {}",
            "rollout.top_p",
            "which tokens a truncated distribution keeps",
        ),
        (
            work("grpo", f"{REWARD} rollout {{ evaluation {{}} }}"),
            "prompt {}",
            "rollout.evaluation",
            'stage "prepare" holds nothing out',
        ),
        (
            work("grpo", f"{REWARD} rollout {{ evaluation {{ temperature: 0.001 }} }}"),
            "prompt {}",
            "rollout.evaluation.temperature",
            "is neither 0, which is greedy, nor at least 0.01",
        ),
        (
            work("distill", f"{TEACHER} rollout {{ evaluation {{}} }}"),
            "prompt {}",
            "rollout.evaluation",
            "measures rewards, and distill has none",
        ),
        (work("ppo", f"{REWARD} rollout {{ temperature: 0 }}"), "prompt {}", "rollout.temperature", "at least 0.01"),
        (work("ppo", f"{REWARD} minibatches: 0"), "prompt {}", "minibatches", "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(home: Path, stage: str, record: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolved(home, stage, record)
    found = {problem.path: problem.message for problem in error.value.problems}
    assert message in found[f"stages[1].{stage.split()[0]}.{path}"]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_learning_rates_and_any_number_of_ranks(home: Path, kind: str) -> None:
    for model, rate in (("", 1e-6), ("lora {}", 1e-5)):
        stage = resolved(home, work(kind, model=model)).stages[1]
        assert getattr(stage, kind).training.optimizer.learning_rate == rate
    job = f'cluster {{ local {{ rank_count: 3 }} }} name: "tiny" {PREPARE % "prompt {}"}'
    text = f'{job} stages {{ name: "train" {work(kind)} }}'
    resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)  # 8 blocks are not cut by 3


def test_defaults_are_the_papers(home: Path) -> None:
    grpo = resolved(home, work("grpo")).stages[1].grpo
    assert not grpo.HasField("kl") and grpo.aggregation == recipes_pb2.Grpo.SEQUENCE_MEAN and grpo.scale_by_std
    assert grpo.rollout.placement == rollout_pb2.Rollout.COLOCATED and grpo.rollout.prompts_per_step == 64
    ppo = resolved(home, work("ppo")).stages[1].ppo
    assert ppo.kl.place == recipes_pb2.KlControl.IN_REWARD and ppo.normalize_advantages and ppo.samples_per_prompt == 1

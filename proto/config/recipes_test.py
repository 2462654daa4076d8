"""What the supervised recipes refuse, and their defaults."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, resolve

PREPARE = 'stages { name: "prepare" data_prep { sources { paths: "x.jsonl" %s } tokenization { tokenizer: "model" } } }'
PAIRS = "preference {}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for model in ("model", "big"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text("{}")
    (tmp_path / "x.jsonl").write_text("{}")
    return tmp_path


def resolved(home: Path, stage: str, record: str = PAIRS) -> job_pb2.JobConfig:
    text = f'name: "tiny" {PREPARE % record} stages {{ name: "train" {stage} }}'
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)


def work(kind: str, fields: str = "", model: str = "") -> str:
    return f'{kind} {{ model {{ path: "model" {model} }} data: "@prepare" {fields} }}'


SPLIT = "training { parallelism { tensor_parallel_size: 2 } }"
TEACHER = 'teacher: "big"'
KEPT = f"{TEACHER} top_k: 8 teacher_cache {{ maker: VLLM }}"
RANKING = "head { ranking { item_count: 5 } }"


@pytest.mark.parametrize(
    ("stage", "record", "path", "message"),
    [
        (work("dpo"), "", "data", "dpo trains on preference pairs"),
        (work("reward_model"), "", "data", "reward_model trains on preference pairs"),
        (work("distill", 'teacher: "big"'), PAIRS, "data", "distill trains on documents"),
        (work("sft"), PAIRS, "data", "sft trains on documents"),
        (work("dpo", "variant: IPO label_smoothing: 0.1"), PAIRS, "label_smoothing", "use variant: SIGMOID"),
        (work("dpo", model="head { scalar {} }"), PAIRS, "model.head", "dpo trains the language-model head"),
        (work("reward_model", model=RANKING), PAIRS, "model.head.ranking", "a reward model has a scalar head"),
        (work("dpo", model='lora { targets: "qproj" }'), PAIRS, "model.lora.targets[0]", "q_proj"),
        (work("distill", f"{TEACHER} teacher_cache {{}}"), "", "top_k", "is needed with teacher_cache"),
        (work("distill", f"{KEPT} temperature: 2"), "", "temperature", "teacher_cache.maker: FORWARD"),
        (work("distill", f"{KEPT} rollout {{}}"), "", "teacher_cache", "samples are new each time"),
    ],
)
def test_what_does_not_fit_is_refused(home: Path, stage: str, record: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolved(home, stage, record)
    found = {problem.path: problem.message for problem in error.value.problems}
    assert message in found[f"stages[1].{stage.split()[0]}.{path}"]


@pytest.mark.parametrize(("kind", "full", "lora"), [("dpo", 5e-7, 5e-6), ("reward_model", 1e-5, 1e-4)])
def test_learning_rates_of_each_recipe(home: Path, kind: str, full: float, lora: float) -> None:
    for model, rate in (("", full), ("lora {}", lora)):
        stage = resolved(home, work(kind, model=model)).stages[1]
        assert getattr(stage, kind).training.optimizer.learning_rate == rate


def test_a_reward_model_may_say_how_its_head_starts(home: Path) -> None:
    job = resolved(home, work("reward_model", model="head { scalar { initial_std: 0.1 } }"))
    assert job.stages[1].reward_model.model.head.scalar.initial_std == 0.1

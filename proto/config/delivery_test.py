"""What is refused of evaluations before anything runs."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, gates, resolve, waves


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "x.jsonl").write_text("{}")
    return tmp_path


def data(name: str, record: str, fraction: str = "evaluation { fraction: 0.1 }") -> str:
    return f"""stages {{ name: "{name}" data_prep {{
        sources {{ paths: "x.jsonl" {record} }} tokenization {{ tokenizer: "model" }} {fraction} }} }}"""


PROMPTS = data("ask", "prompt {}")
TEXTS = data("texts", "conversation {}")
GENERATION = 'tasks { name: "quiz" data: "@ask" generation {} }'
PERPLEXITY = 'tasks { name: "held-out" data: "@texts" perplexity {} }'


def load(home: Path, work: str, stages: str = PROMPTS + TEXTS) -> job_pb2.JobConfig:
    text = f'name: "j" {stages} stages {{ name: "measure" evaluate {{ model: "model" {work} }} }}'
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)


def problem(home: Path, work: str, stages: str = PROMPTS + TEXTS) -> str:
    with pytest.raises(ConfigError) as error:
        load(home, work, stages)
    [found] = error.value.problems
    return f"{found.path}: {found.message}"


def test_defaults_are_filled_in(home: Path) -> None:
    [task] = load(home, GENERATION).stages[-1].evaluate.tasks
    assert (task.split, task.generation.max_new_tokens, task.generation.temperature) == ("evaluation", 256, 0)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("acuracy >= 0.6", 'no task measures "acuracy"; did you mean accuracy?'),
        ("exam.accuracy >= 0.6", 'there is no task "exam"'),
        ("accuracy is good", "is not a gate; write"),
        ("accuracy >= 0.6.1", "0.6.1 is not a number"),
        ("accuracy no worse than sft", "is not a gate; write"),
    ],
)
def test_gates_that_say_nothing_are_refused(home: Path, gate: str, said: str) -> None:
    found = problem(home, f'{GENERATION} gates: "{gate}"')
    assert found.startswith("stages[2].evaluate.gates[0]: ") and said in found


def test_a_metric_of_two_tasks_needs_its_task(home: Path) -> None:
    two = GENERATION + GENERATION.replace("quiz", "exam")
    assert 'write "quiz.accuracy"' in problem(home, f'{two} gates: "accuracy > 0.5"')
    load(home, f'{two} gates: "exam.accuracy > 0.5"')


def test_metrics_that_only_a_run_tells_are_accepted(home: Path) -> None:
    load(home, 'tasks { name: "mine" python: "my.tasks:politeness" } gates: "politeness >= 0.5"')


def test_a_baseline_is_waited_for_and_must_be_there(home: Path) -> None:
    tune = 'stages { name: "sft" sft { model { path: "model" } data: "@texts" } }'
    job = load(home, f'{GENERATION} gates: "accuracy no worse than @sft"', PROMPTS + TEXTS + tune)
    assert waves(job) == [["ask", "texts"], ["sft"], ["measure"]]
    said = problem(home, f'{GENERATION} gates: "accuracy no worse than @sfd"', PROMPTS + TEXTS + tune)
    assert 'gates[0]: "@sfd" is not a stage of this job; did you mean @sft?' in said
    said = problem(home, f'{GENERATION} gates: "accuracy no worse than @texts"')
    assert "which does not make something to compare with" in said


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ('data: "@texts" generation {}', 'generation reads prompts, which stage "texts" does not make'),
        ('data: "@ask" perplexity {}', 'perplexity reads documents, which stage "ask" does not make'),
        ('data: "@texts" ranking {}', 'ranking reads event sequences, which stage "texts" does not make'),
        ("perplexity {}", "perplexity needs prepared documents"),
        ('data: "@ask" generation { verifiers { model: "model" } }', "compare two models with win_rate"),
        ('data: "@ask" generation { verifiers { overlong { buffer_tokens: 1 } } }', "which is not accuracy"),
        ('lm_eval { tasks: "x" folder: "nowhere" }', "is not a folder"),
        ('python: "no colon"', "does not match"),
    ],
)
def test_tasks_that_cannot_be_done_are_refused(home: Path, task: str, said: str) -> None:
    assert said in problem(home, f'tasks {{ name: "t" {task} }}')


def test_nothing_is_measured_on_what_was_trained_on_without_saying_so(home: Path) -> None:
    all_of_it = data("all", "conversation {}", "")
    said = problem(home, 'tasks { name: "t" data: "@all" perplexity {} }', all_of_it)
    assert 'stage "all" holds nothing out' in said
    load(home, 'tasks { name: "t" data: "@all" split: "train" perplexity {} }', all_of_it)


def test_gates_are_read_with_their_parts() -> None:
    assert gates.parse(" quiz.accuracy >=0.6 ") == gates.Gate("quiz.accuracy >=0.6", "quiz", "accuracy", ">=", 0.6)
    assert gates.parse("ndcg_at_10 no worse than @a-b").stage == "a-b"
    assert gates.parse("loss < 1e-2").number == 0.01


RL = 'grpo { model { path: "model" } data: "@ask" rewards { regular_expression: "z" } ROLLOUT }'


def while_training(home: Path, trained: str, task: str = GENERATION, model: str = "@train") -> job_pb2.JobConfig:
    text = f"""name: "j" {PROMPTS} {TEXTS} {data("quizzes", "prompt {}")}
        stages {{ name: "train" {trained} }}
        stages {{ name: "measure" evaluate {{ model: "{model}" while_training {{}} {task} }} }}"""
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)


def test_what_is_measured_while_training_is_prepared_before(home: Path) -> None:
    job = while_training(home, RL.replace("ROLLOUT", ""), GENERATION.replace("@ask", "@quizzes"))
    assert waves(job) == [["ask", "texts", "quizzes"], ["train"], ["measure"]]
    assert job.stages[-1].evaluate.while_training.every_steps == 10


@pytest.mark.parametrize(
    ("trained", "task", "model", "said"),
    [
        ('sft { model { path: "model" } data: "@texts" }', GENERATION, "@train", "has no rollout engines to ask"),
        (RL.replace("ROLLOUT", ""), GENERATION, "model", "has no rollout engines to ask"),
        (RL.replace("ROLLOUT", ""), PERPLEXITY, "@train", "perplexity is not measured by answers"),
    ],
)
def test_what_engines_cannot_be_asked_is_refused(home: Path, trained: str, task: str, model: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        while_training(home, trained, task, model)
    assert said in str(error.value)


def deploy(home: Path, fields: str) -> job_pb2.JobConfig:
    text = f'name: "j" stages {{ name: "deploy" deploy {{ model: "model" {fields} }} }}'
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)


def test_an_endpoint_is_local_and_open_unless_said_otherwise(home: Path) -> None:
    work = deploy(home, "").stages[0].deploy
    assert work.listen_address == "127.0.0.1" and not work.HasField("api_key") and not work.HasField("tls")


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.5", "::"])
def test_others_are_let_in_only_with_a_key_and_encryption(home: Path, address: str) -> None:
    with pytest.raises(ConfigError) as error:
        deploy(home, f'listen_address: "{address}"')
    assert [found.path for found in error.value.problems] == ["stages[0].deploy.api_key", "stages[0].deploy.tls"]
    tls = 'tls { certificate_file: "x.jsonl" key_file: "x.jsonl" }'
    deploy(home, f'listen_address: "{address}" api_key {{ file: "x.jsonl" }} {tls}')


@pytest.mark.parametrize("fields", ['listen_address: "10.0"', "api_key {}", 'tls { certificate_file: "x.jsonl" }'])
def test_listening_that_is_half_said_is_refused(home: Path, fields: str) -> None:
    with pytest.raises(ConfigError):
        deploy(home, fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("placement: CLUSTER", "is needed with placement CLUSTER, whose nodes are kept and paid for so long"),
        ("serve_for { seconds: 60 }", "is for placement CLUSTER; an endpoint of its own lives until it is ended"),
    ],
)
def test_serving_in_a_cluster_says_how_long(home: Path, fields: str, said: str) -> None:
    text = f'name: "j" stages {{ name: "deploy" deploy {{ model: "model" {fields} }} }}'
    with pytest.raises(ConfigError) as error:
        resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=home)
    [found] = error.value.problems
    assert found.path == "stages[0].deploy.serve_for" and said in found.message

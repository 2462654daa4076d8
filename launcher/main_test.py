"""The command line from outside: exit codes, sentences, JSON, and how little the quick verbs import."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from finecut.launcher import testing
from finecut.launcher.planning.testing import on_aws
from finecut.launcher.planning.testing import write_job as job_of

PREPARE = (
    'stages {{ name: "{}" data_prep {{ sources {{ paths: "{}" }} tokenization {{ tokenizer: "FOLDER/model" }} }} }}\n'
)
SFT = 'stages {{ name: "{}" sft {{ model {{ path: "{}" }} data: "{}" }} }}\n'


def launch(*arguments: object, check: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the launcher, with fakes for what needs a cluster, as a process of its own."""
    command = [sys.executable, "-m", "finecut.launcher.testing", *map(str, arguments)]
    done = subprocess.run(command, env=testing.environment(**environment), capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done


def problems(job: Path, *arguments: object, verb: str = "validate") -> dict[str, str]:
    """Problems by path that a verb finds in a job, as JSON; the exit code must be 2 and nothing may be written."""
    before = sorted(job.parent.rglob("*"))
    done = launch(verb, f"--config={job}", "--format=json", *arguments, check=2)
    assert sorted(job.parent.rglob("*")) == before
    return {problem["path"]: problem["message"] for problem in json.loads(done.stdout)["problems"]}


def test_valid_job(tmp_path: Path) -> None:
    done = launch("validate", f"--config={testing.write_job(tmp_path)}", check=0)
    assert "is valid: prepare -> sft -> export" in done.stdout


BAD_JOBS = {
    "missing input file": (
        PREPARE.format("prepare", "FOLDER/nowhere.jsonl"),
        "stages[0].data_prep.sources[0].paths[0]",
        "nowhere.jsonl",
    ),
    "bad reference": (
        PREPARE.format("prepare", "FOLDER/chat.jsonl") + SFT.format("sft", "FOLDER/model", "@prepar"),
        "stages[1].sft.data",
        "did you mean @prepare?",
    ),
    "cycle": (
        PREPARE.format("prepare", "FOLDER/chat.jsonl")
        + SFT.format("a", "@b", "@prepare")
        + SFT.format("b", "@a", "@prepare"),
        "stages",
        "circle: a -> b -> a",
    ),
    "duplicate stage name": (
        PREPARE.format("same", "FOLDER/chat.jsonl") * 2,
        "stages[1].name",
        "also the name of stages[0]",
    ),
}


@pytest.mark.parametrize("verb", ["validate", "run"])
@pytest.mark.parametrize("case", BAD_JOBS)
def test_bad_job_is_refused_with_its_field(tmp_path: Path, case: str, verb: str) -> None:
    stages, path, words = BAD_JOBS[case]
    assert words in problems(testing.write_job(tmp_path, stages=stages), verb=verb)[path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('stages { name: "p" data_perp { } }', "data_prep"),  # the suggestion
        ('stages { name: "p" data_prep { seed: "many" } }', "many"),
    ],
)
def test_unknown_field_and_wrong_type_are_refused(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in message for message in problems(testing.write_job(tmp_path, stages=text)).values())


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    stages = PREPARE.format("prepare", "FOLDER/nowhere.jsonl") + SFT.format("sft", "FOLDER/none", "@prepar")
    assert len(problems(testing.write_job(tmp_path, stages=stages))) == 3


def test_missing_job_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in problems(tmp_path / "none.textproto")[""]


def test_a_reader_that_stops_early_sees_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finecut.launcher.testing", "plan", f"--config={testing.write_job(tmp_path)}"]
    environment = testing.environment(PYTHONUNBUFFERED="1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


GIANT = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 65_536, "intermediate_size": 262_144}


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = job_of(tmp_path, config=GIANT)
    for verb in ("run", "plan"):
        (told,) = problems(job, verb=verb).values()
        assert told.startswith("needs ") and "accept_memory_plan" in told
    accepted = "--set=accept_memory_plan=it fitted before"
    shown = launch("plan", f"--config={job}", accepted, check=0).stdout
    assert "starts although it may not fit: it fitted before" in shown
    launch("run", f"--config={job}", accepted, check=0)
    assert testing.calls(tmp_path / "runs" / "tiny") == ["prepare", "sft"]


def test_plan_of_a_cluster_has_its_cost_and_what_becomes_of_the_budget(tmp_path: Path) -> None:
    job = job_of(tmp_path, cluster=on_aws('instance_types: "p5.48xlarge"'))
    budget = "--set=cluster.max_cost_usd=14"
    document = json.loads(launch("plan", f"--config={job}", budget, "--format=json", check=0).stdout)
    total, sft = document["total"], document["stages"][1]["estimate"]
    assert sft["hardware"] == "8 x H100 (1 x p5.48xlarge)" and total["cost_usd"] == sft["cost_usd"]
    assert total["cost_usd"] == pytest.approx(55.04 * total["hours"]) and total["not_counted"] == ["prepare"]
    shown = " ".join(launch("plan", f"--config={job}", budget, check=0).stdout.split())
    assert f"training takes {60 * total['hours']:,.1f} minutes, {total['cost_usd']:,.2f} dollars together" in shown
    covers = total["cost_usd"] <= 14
    assert ("the budget of 14.00 dollars covers it" if covers else "raise cluster.max_cost_usd to") in shown


def test_unwritable_storage_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    (found,) = problems(job, f"--storage_root={tmp_path}/chat.jsonl/runs", verb="run").values()
    assert "cannot be written" in found and "--storage_root" in found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit"], "--server is not set"),
        (["rnu"], "'rnu' is not a verb; use one of: run, validate, plan, status, resume"),
        (["--confg=x"], "Did you mean: config"),
        (["--format=xml"], "format"),
        (["run"], "--config is not set"),
        (["resume", "a", "b"], "too many arguments"),
    ],
)
def test_bad_command_line_is_refused_in_a_sentence(arguments: list[str], words: str) -> None:
    done = launch(*arguments, check=2)
    assert words in done.stderr and len(done.stderr.splitlines()) <= 2


def test_help_tells_verbs_flags_and_exit_codes() -> None:
    shown = launch("--help", check=0).stdout
    for words in ("resume", "--config", "--storage_root", "--set", "--format", "Exit codes"):
        assert words in shown


def test_set_overrides_a_field_and_json_plan_shows_it(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    override = "--set=stages.sft.sft.training.max_steps=20"
    document = json.loads(launch("plan", f"--config={job}", override, "--format=json", check=0).stdout)
    assert {"name": "length", "value": "20 steps"} in document["stages"][1]["settings"]
    assert document["config"]["stages"][1]["sft"]["training"]["max_steps"] == "20"


def test_run_prints_plan_progress_and_places_and_again_does_nothing(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    shown = launch(f"--config={job}", check=0).stdout  # run is the default verb
    for words in (
        "learning_rate 2e-05",
        "step 2/2",
        f"{tmp_path}/runs/tiny/stages/export/artifact",
        "2.5000 -> 1.2500 (-50.0%)",
        "> Hello?",
        "Hi.",
    ):
        assert words in shown
    again = launch("run", f"--config={job}", check=0).stdout
    assert "nothing was run again" in again and "> Hello?" in again
    assert testing.calls(tmp_path / "runs" / "tiny") == ["prepare", "sft", "export"]


def test_run_in_json_prints_one_document(tmp_path: Path) -> None:
    done = launch("run", f"--config={testing.write_job(tmp_path)}", "--format=json", check=0)
    document = json.loads(done.stdout)
    assert document["state"] == "succeeded"
    assert document["stages"][2]["samples"] == [{"prompt": "Hello?", "answer": "Hi."}]
    assert "step 2/2" in done.stderr


def test_other_config_on_the_same_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    launch("run", f"--config={job}", check=0)
    done = launch("run", f"--config={job}", "--set=stages.sft.sft.training.max_steps=4", check=2)
    assert "stages[1].sft.training.max_steps: 3 -> 4" in done.stderr
    assert testing.calls(tmp_path / "runs" / "tiny") == ["prepare", "sft", "export"]


def test_stage_that_refuses_its_input_exits_2_with_its_sentence_and_resumes_there(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    done = launch("run", f"--config={job}", check=2, FINECUT_TEST_MISBEHAVE="refuse:sft")
    assert "chat.jsonl:3: not JSON; fix or remove the line" in done.stderr
    assert f"resume tiny --storage_root={tmp_path}/runs" in done.stderr
    launch("resume", "tiny", f"--storage_root={tmp_path}/runs", check=0)
    assert testing.calls(tmp_path / "runs" / "tiny") == ["prepare", "sft", "sft", "export"]


def test_stage_that_breaks_exits_1_and_keeps_the_traceback_in_a_file(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    done = launch("run", f"--config={job}", check=1, FINECUT_TEST_MISBEHAVE="fail:sft")
    log = tmp_path / "runs" / "tiny" / "logs" / "launcher.log"
    assert "RuntimeError: the machine is on fire" in done.stderr and str(log) in done.stderr
    assert "Traceback" in log.read_text()
    status = json.loads(launch("status", "tiny", f"--storage_root={tmp_path}/runs", "--format=json", check=0).stdout)
    assert [stage["state"] for stage in status["stages"]] == ["succeeded", "failed", "pending"]
    assert status["stages"][1]["error"] == "RuntimeError: the machine is on fire"


def test_status_without_a_name_lists_runs(tmp_path: Path) -> None:
    assert "no runs in" in launch("status", f"--storage_root={tmp_path}/runs", check=0).stdout
    launch("run", f"--config={testing.write_job(tmp_path)}", check=0)
    listed = json.loads(launch("status", f"--storage_root={tmp_path}/runs", "--format=json", check=0).stdout)
    assert [(run["name"], run["state"]) for run in listed["runs"]] == [("tiny", "succeeded")]


def test_resume_of_an_unknown_run_is_refused(tmp_path: Path) -> None:
    done = launch("resume", "nobody", f"--storage_root={tmp_path}", check=2)
    assert "holds no run 'nobody'" in done.stderr
    assert "no run to resume" in launch("resume", f"--config={testing.write_job(tmp_path)}", check=2).stderr


SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("verb", "where"), [("validate", "aws"), ("plan", "here"), ("plan", "aws"), ("status", "here")]
)
def test_quick_verbs_answer_in_two_seconds_and_import_nothing_heavy(tmp_path: Path, verb: str, where: str) -> None:
    program = (
        "import sys\n"
        "from finecut.launcher import main\n"
        "main.flags.FLAGS(sys.argv)\n"
        "code = main.main([sys.argv[0], sys.argv[1]])\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'dbos', 'pyarrow', 'numpy', 'boto3', 'botocore'}\n"
        "found = heavy & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else code)\n"
    )
    cluster = on_aws('instance_types: "p5.48xlarge"') if where == "aws" else ""
    job = job_of(tmp_path, cluster=cluster, training="max_steps: 9 parallelism { mode: AUTO }", config=SMALL)
    command = [sys.executable, "-c", program, verb, f"--config={job}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=testing.environment(), check=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0

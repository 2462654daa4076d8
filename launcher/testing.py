"""Builders and fakes for this package's tests: a job on disk, stages that write real artifacts, no cluster."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from finecut.launcher import driver
from finecut.launcher.providers.provider import ClusterPlan, Observation, Phase
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog

STAGES = """
stages {
  name: "prepare"
  data_prep { sources { paths: "FOLDER/chat.jsonl" } tokenization { tokenizer: "FOLDER/model" } }
}
stages { name: "sft" sft { model { path: "FOLDER/model" } data: "@prepare" training { max_steps: 3 } } }
stages { name: "export" export { model: "@sft" sample_prompts: "Hello?" } }
"""


def write_job(folder: Path, name: str = "tiny", stages: str = STAGES) -> Path:
    """Writes a valid job file and the files it names; its runs go to the folder "runs" beside it.

    FOLDER in `stages` stands for `folder`.
    """
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "chat.jsonl").write_text('{"messages": []}\n')
    path = folder / "job.textproto"
    path.write_text(f'name: "{name}"\nstorage {{ root: "{folder}/runs" }}\n{stages.replace("FOLDER", str(folder))}')
    return path


class FakeProvider:
    """A cluster that is only remembered."""

    def __init__(self, job: job_pb2.JobConfig, folder: RunFolder) -> None:
        self.phase = Phase.ABSENT

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        return ClusterPlan("fake", 1, 4, 0)

    def apply(self, plan: ClusterPlan) -> None:
        self.phase = Phase.READY

    def observe(self) -> Observation:
        return Observation(self.phase, cpu_count=4)

    def release(self) -> None:
        self.phase = Phase.ABSENT


def fake_machinery(before: Callable[[str], None] = lambda stage: None) -> driver.Machinery:
    """Executors that note each call in <run>/calls, call `before`, and write the stage's artifact."""

    def execute(job: job_pb2.JobConfig, stage: str) -> None:
        folder = RunFolder.of(job)
        with (folder.root / "calls").open("a") as calls:
            calls.write(f"{stage}\n")
        with EventLog(folder.events(stage), stage) as log:
            log.step(1, 2, {"loss": 2.5, "tokens_per_second": 1000.0})
            before(stage)
            log.step(2, 2, {"loss": 1.5, "tokens_per_second": 1000.0})
        artifacts_of_stage = folder.artifact(stage)
        artifacts_of_stage.mkdir(parents=True, exist_ok=True)
        artifact = artifact_pb2.Artifact(job=job.name, stage=stage)
        artifact.fingerprints.config = fingerprint.of_stage(job, stage)
        if stage == "export":
            artifact.model.metrics.update(first_evaluation_loss=2.5, evaluation_loss=1.25)
            artifact.model.samples.add(prompt="Hello?", answer="Hi.")
        artifacts.write(artifacts_of_stage, artifact)

    return driver.Machinery(FakeProvider, dict.fromkeys(("data_prep", "sft", "export"), execute))


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process that imports what this one imports."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | more


def calls(run: Path) -> list[str]:
    """Stages that fake executors have run, in order."""
    return (run / "calls").read_text().split()


def misbehave(stage: str) -> None:
    """What the environment asks of one stage, as "kill:sft": kill, fail, refuse or hang."""
    action, _, name = os.environ.get("FINECUT_TEST_MISBEHAVE", "").partition(":")
    if stage != name:
        return
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            raise RuntimeError("the machine is on fire")
        case "refuse":
            raise UserError("chat.jsonl:3: not JSON; fix or remove the line")
        case "hang":
            time.sleep(600)


def main() -> None:
    """The launcher with fakes in place of Ray and the stages, for tests that kill it."""
    from absl import app

    from finecut.launcher import main as launcher

    driver.REAL = fake_machinery(misbehave)
    app.run(launcher.main, argv=sys.argv, flags_parser=launcher.parse)


if __name__ == "__main__":
    main()

"""A whole job on this machine, submitted by a program over mutual TLS: watched over a crash, and cancelled at work."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finecut.launcher import reaper, runs
from finecut.launcher.client import JobClient
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import load_submission
from finecut.proto.run import RunFolder, artifacts
from finecut.tests.service.real_service import PATIENCE_SECONDS, RealService, running, until
from finecut.trainer.testing import write_tiny_llama

STEPS = 40
JOB = """
name: "tiny"
storage {{ root: "{folder}/runs" }}
stages {{
  name: "prepare"
  data_prep {{
    sources {{ paths: "{folder}/chat.jsonl" }}
    tokenization {{ tokenizer: "{folder}/model" }}
    packing {{ block_size: 128 }}
    evaluation {{ fraction: 0.1 }}
  }}
}}
stages {{
  name: "sft"
  sft {{
    model {{ path: "{folder}/model" }}
    data: "@prepare"
    training {{
      max_steps: {steps}
      batch {{ global_blocks: 2 }}
      optimizer {{ learning_rate: 0.003 }}
      checkpointing {{ every_steps: 4 }}
    }}
  }}
}}
stages {{
  name: "export"
  export {{ model: "@sft" sample_prompts: "What is 7?" sample_max_new_tokens: 4 check_vllm: false }}
}}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RealService]:
    with running(tmp_path, OMP_NUM_THREADS="1") as service:
        yield service


@pytest.fixture
def job(tmp_path: Path) -> job_pb2.JobConfig:
    """A job with a tiny model and conversations."""
    write_tiny_llama(tmp_path / "model")
    records = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is the number {n}."}]
        for n in range(150)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": record}) + "\n" for record in records))
    (tmp_path / "job.textproto").write_text(JOB.format(folder=tmp_path, steps=STEPS))
    return load_submission(tmp_path / "job.textproto")


def until_it_has_checkpoints(client: JobClient, made: service_pb2.Job, run: RunFolder) -> None:
    def has() -> bool:
        now = client.get(made.id)
        assert now.state in (service_pb2.PENDING, service_pb2.RUNNING), now.error
        return any(run.checkpoints("sft").glob("step-*/manifest.json"))

    until(has, "SFT wrote no checkpoint")


def test_job_goes_on_over_a_crash_of_the_service_and_another_is_cancelled(
    service: RealService, job: job_pb2.JobConfig
) -> None:
    run = RunFolder(Path(job.storage.root) / job.name)
    with service.client() as client, ThreadPoolExecutor(1) as pool:
        made = client.submit(job, "nightly")
        watched = pool.submit(lambda: list(client.watch(made.id)))
        until_it_has_checkpoints(client, made, run)
        service.kill()
        until(lambda: not service.launchers(), "the launcher outlived the service")
        service.start()
        assert client.submit(job, "nightly").id == made.id, "the same request is the same job"
        events = watched.result(PATIENCE_SECONDS)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))

        done = client.get(made.id)
        assert done.state == service_pb2.SUCCEEDED, done.error
        assert [(stage.step, stage.total_steps) for stage in done.stages][1] == (STEPS, STEPS)
        assert artifacts.read(run.artifact("sft"), verify=True).model.steps == STEPS
        exported = artifacts.read(Path(done.stages[2].artifact), verify=True)
        assert exported.model.samples[0].prompt == "What is 7?"
        assert (run.artifact("export") / "model.safetensors").stat().st_size > 0

        job.name, job.stages[1].sft.training.max_steps = "endless", 1_000_000
        run = RunFolder(Path(job.storage.root) / job.name)
        made = client.submit(job)
        until_it_has_checkpoints(client, made, run)
        token = (run.root / "logs" / "ray").readlink().parents[2] / "token"
        assert reaper.processes_with(token), "Ray's processes are not found"
        client.cancel(made.id)
        assert client.wait(made.id).state == service_pb2.CANCELLED
        assert not service.launchers() and runs.launcher_pid(run) is None
        assert reaper.processes_with(token) == []

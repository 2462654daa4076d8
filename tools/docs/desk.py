"""A folder in which the documentation's commands can be run: its jobs as files, and whatever they name."""

import json
from collections.abc import Iterable
from pathlib import Path

from finecut.launcher import runs
from finecut.proto import job_pb2, rules_pb2
from finecut.proto.config import UserError, build, load_job, text_reader
from finecut.proto.config.walk import visit

# SmolLM2-135M-Instruct's, without its weights: enough to validate and to plan.
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def job_of(text: str) -> job_pb2.JobConfig:
    """A block as a job, as it is written, or a part of one. Raises UserError, with every problem of its form."""
    job = job_pb2.JobConfig()
    problems = build.fill(job, text_reader.read(text, "block"))
    if problems:
        raise UserError("; ".join(map(str, problems)))
    return job


# Where a part of a job stands: in the job, a stage, its work, a recipe with rollouts.
_PLACES = ("%s", 'stages { name: "x" %s }', 'stages { name: "x" sft { %s } }', 'stages { name: "x" grpo { %s } }')


def is_part_of_a_job(text: str) -> bool:
    """Whether a few lines are the fields of a job, of a stage or of a recipe."""
    for place in _PLACES:
        try:
            job_of(place.replace("%s", text))
        except UserError:
            continue
        return True
    return False


def lay_out(folder: Path, jobs: Iterable[str], names: Iterable[str] = ()) -> None:
    """Writes jobs as NAME.textproto, with the models and files that they name, and starts a run of each.

    Further runs, of the last job, get `names`.
    """
    job = None
    for text in jobs:
        job = job_of(text)
        path = folder / f"{job.name}.textproto"
        path.write_text(text)
        write_inputs(folder, job)
        start(path)
    for name in names if job else ():
        start(path, name)


def write_inputs(folder: Path, job: job_pb2.JobConfig) -> None:
    """Models without weights and files without records, wherever the job says that there are some."""
    for found in visit(job):
        if not isinstance(found.value, str) or found.value.startswith(("@", "//")) or "://" in found.value:
            continue
        if found.rule.reference == rules_pb2.REFERENCE_MODEL:
            (folder / found.value).mkdir(parents=True, exist_ok=True)
            (folder / found.value / "config.json").write_text(json.dumps(_MODEL))
        elif found.rule.reference == rules_pb2.REFERENCE_FILES:
            path = folder / found.value.replace("*", "x")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def start(path: Path, name: str | None = None) -> None:
    """A run of a job file that no stage of has started; paths are seen from BUILD_WORKING_DIRECTORY."""
    job = load_job(path, overrides=[f"name={name}"] if name else [])
    with runs.opened(job):
        pass

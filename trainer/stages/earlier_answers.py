"""What the model answered before this job trained it, beside what it answers now."""

from __future__ import annotations

from pathlib import Path

from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder
from finecut.proto.run.events import EventLog
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.models.reference import load_reference
from finecut.trainer.stages import stop_token
from finecut.trainer.stages.samples import answer, load_tokenizer


def add(content: artifact_pb2.ModelArtifact, job: job_pb2.JobConfig, stage: str, device: str, log: EventLog) -> None:
    """Fills in `answer_before` of an export's samples.

    Nothing happens where the stage declines, asks nothing, or exports a model from elsewhere; a model that cannot be
    asked is said in the log, and the export goes on.
    """
    export = next(candidate for candidate in job.stages if candidate.name == stage).export
    if not content.samples or not export.sample_model_before or not export.model.startswith("@"):
        return
    try:
        source = locate_model(origin(job, export.model))
        tokenizer = load_tokenizer(source.tokenizer)
        model = load_reference(source.base, device, source.adapter)
    except UserError as error:
        log.message(f"no answers from before training: {error}")
        return
    end = stop_token.end_of_turn(tokenizer)
    stops = {*stop_token.stop_tokens(source.base), *([] if end is None else [end])}
    for sample in content.samples:
        sample.answer_before = answer(model, tokenizer, sample.prompt, export.sample_max_new_tokens, sorted(stops))


def origin(job: job_pb2.JobConfig, reference: str) -> Path:
    """The model that a stage's training goes back to, through all stages of this job."""
    stages = {stage.name: stage for stage in job.stages}
    while reference.startswith("@"):
        stage = stages[reference[1:]]
        work = getattr(stage, stage.WhichOneof("work") or "")
        reference = work.model if stage.WhichOneof("work") == "export" else work.model.path
    return RunFolder.of(job).locate(reference)

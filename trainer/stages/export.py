"""The export stage: writes a model that `transformers` and vLLM load, and proves it before anyone sees it.

    trained model (and adapter) -> folder.partial -> reloaded in vLLM: log-probabilities and greedy answers asked for
      -> reloaded in transformers: logits compared, vLLM's answers compared, prompts answered
      -> model card, manifest -> renamed to artifact

Comparisons on CPUs are between FP32 computations on equal weights, so that one tight tolerance (logits.TOLERANCE) holds
for every weight type: where the written weights are BF16 or FP16, ours are rounded likewise first. What the rounding
itself does to the model is measured as `rounding_divergence` (mean KL, in nats a token); to a reward model, as
`rounding_difference` (the largest of a score).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finecut.dataprep import tokenization
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog
from finecut.trainer.models.adapter import read_lora_config
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.heads import head_of
from finecut.trainer.models.huggingface import ModelSource, locate_model, save_adapter, save_model
from finecut.trainer.models.logits import Agreement, compare, load_decoder, packed_logits
from finecut.trainer.models.reference import load_reference, reference_logits
from finecut.trainer.models.tokenizer_files import copy_tokenizer
from finecut.trainer.stages import earlier_answers, model_card, stop_token, vllm_check
from finecut.trainer.stages.export_config import ExportConfig
from finecut.trainer.stages.samples import answer, checked_documents, load_tokenizer


def run_export(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact:
    """Runs the stage in this process; under several ranks only rank 0 calls it.

    Returns at once when the stage is finished already. Raises UserError when the model cannot be read, or when the
    written one does not compute what the trained one does; nothing is left in the artifact's place then.
    """
    run = RunFolder.of(job)
    if finished := _finished(job, stage, run):
        return finished
    config = ExportConfig.from_proto(next(s for s in job.stages if s.name == stage).export)
    trained = _upstream(config, run)
    source = locate_model(run.locate(config.model))
    head = head_of(source)
    vocabulary_size = DecoderConfig.from_folder(source.base).vocabulary_size
    if head and config.sample_prompts:
        raise UserError(
            f"stages.{stage}.export.sample_prompts: {config.model} scores answers and writes none; unset them"
        )
    if config.adapter_only and source.adapter is None:
        raise UserError(f"stages.{stage}.export.format: ADAPTER, but {config.model} is a whole model; use MERGED")
    unfinished = run.stage(stage) / "artifact.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with EventLog(run.events(stage), stage) as log:
            tokenizer = load_tokenizer(source.tokenizer)
            documents = checked_documents(tokenizer, config.sample_prompts, vocabulary_size)
            written = _write(config, source, head, documents, unfinished)
            content, checks = _prove(config, source, tokenizer, documents, written, log)
            content.steps = trained.model.steps
            content.metrics.MergeFrom(trained.model.metrics)
            artifact = artifact_pb2.Artifact(job=job.name, stage=stage, model=content)
            earlier_answers.add(artifact.model, job, stage, _device(), log)
            artifact.fingerprints.config = fingerprint.of_stage(job, stage)
            artifact.fingerprints.tokenizer = tokenization.fingerprint(tokenizer)
            artifact.fingerprints.code = fingerprint.code_version()
            model_card.write(unfinished, artifact, trained, [source.base.name], checks)
            artifact = artifacts.write(unfinished, artifact)
            unfinished.rename(run.artifact(stage))
            log.message(f"exported to {run.artifact(stage)}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return artifact


def _finished(job: job_pb2.JobConfig, stage: str, run: RunFolder) -> artifact_pb2.Artifact | None:
    """The artifact of an earlier run of the same stage; what a killed one left is removed."""
    folder = run.artifact(stage)
    if not folder.exists():
        return None
    try:
        artifact = artifacts.read(folder)
    except artifacts.ArtifactError:
        shutil.rmtree(folder)
        return None
    if artifact.fingerprints.config != fingerprint.of_stage(job, stage):
        raise UserError(f"{folder} was made with other settings; give the job another name, or delete that folder")
    return artifact


def _upstream(config: ExportConfig, run: RunFolder) -> artifact_pb2.Artifact:
    """What the stage that trained the model says of it, its files checked; empty for a model from elsewhere."""
    if not config.model.startswith("@"):
        return artifact_pb2.Artifact()
    return artifacts.read(run.locate(config.model), verify=True)


@dataclasses.dataclass(frozen=True)
class _Written:
    """What was written, and what it has to compute."""

    folder: Path
    # Logits of the trained model, and those its written weights must give.
    trained: list[Tensor]
    expected: list[Tensor]
    # None: a language model. Else the logits are the outputs of each document's last token.
    head: OutputHead | None


def _write(
    config: ExportConfig, source: ModelSource, head: OutputHead | None, documents: Sequence[Tensor], folder: Path
) -> _Written:
    lora = read_lora_config(source.adapter) if source.adapter else None
    model = load_decoder(source, _device(), lora, head)
    trained = packed_logits(model, documents)
    if config.adapter_only:
        save_adapter(model, folder, str(source.base))
        copy_tokenizer(source.tokenizer, folder)
        return _Written(folder, trained, trained, head)
    save_model(model, folder, source.base, config.weight_type, config.max_shard_bytes)
    copy_tokenizer(source.tokenizer, folder)
    if lora:
        del model  # one model in memory at a time
        model = load_decoder(source, _device(), output_head=head)
        _require(compare(packed_logits(model, documents), trained), "merging the adapter changed the model")
    return _Written(folder, trained, _rounded_logits(model, config.weight_type, documents), head)


def _prove(
    config: ExportConfig,
    source: ModelSource,
    tokenizer: Any,
    documents: Sequence[Tensor],
    written: _Written,
    log: EventLog,
) -> tuple[artifact_pb2.ModelArtifact, dict[str, str]]:
    """Reloads the folder in vLLM and in `transformers`, compares, and lets it answer. Returns what was proved, too."""
    content = artifact_pb2.ModelArtifact(adapter=config.adapter_only)
    base, adapter = (source.base, written.folder) if config.adapter_only else (written.folder, None)
    if config.adapter_only:
        content.base_model = str(source.base)
    is_language_model = written.head is None
    stops = _stop_tokens(base, tokenizer, not config.adapter_only, log) if is_language_model else []
    served = None
    if config.check_vllm and is_language_model:  # before the reference: one model in memory at a time
        served = vllm_check.ask(base, adapter, documents, stops, is_exact=_device() == "cpu")
    reference = load_reference(base, _device(), adapter, written.head.num_outputs if written.head else None)
    reloaded = reference_logits(reference, documents)
    agreement = compare(written.expected, reloaded)
    _require(agreement, "the exported model, reloaded in transformers, does not compute what was trained")
    log.message(f"reloaded in transformers: logits are equal, {agreement}")
    content.metrics["logit_max_difference"] = agreement.max_difference
    checks = {"transformers": f"logits are the trainer's: {agreement}"}
    if served:
        difference = vllm_check.require_agreement(served, documents, partial(reference_logits, reference))
        log.message(f"reloaded in vLLM: log-probabilities and answers are equal, max difference {difference:.3g} nats")
        content.metrics["vllm_max_difference"] = difference
        checks["vLLM"] = f"log-probabilities (max difference {difference:.3g} nats), greedy answers and their ends"
    rounding = compare(reloaded, written.trained)
    if is_language_model:
        content.metrics["rounding_divergence"] = rounding.divergence
    else:
        content.metrics["rounding_difference"] = rounding.max_difference
    for prompt in config.sample_prompts:
        text = answer(reference, tokenizer, prompt, config.sample_max_new_tokens, stops)
        content.samples.add(prompt=prompt, answer=text)
        log.message(f"prompt: {prompt}\nanswer: {text}")
    return content, checks


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _rounded_logits(model: Decoder, weight_type: torch.dtype, documents: Sequence[Tensor]) -> list[Tensor]:
    """Logits once the weights went through the written type. Changes the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(weight_type))
    logits = packed_logits(model, documents)
    if not all(part.isfinite().all() for part in logits):
        raise UserError(
            f"the model's weights do not fit {weight_type}; use export.weight_type WEIGHT_BF16 or WEIGHT_FP32"
        )
    return logits


def _require(agreement: Agreement, problem: str) -> None:
    if not agreement.is_equal:
        raise UserError(f"{problem}: {agreement}; nothing was exported")


def _stop_tokens(folder: Path, tokenizer: Any, is_ours: bool, log: EventLog) -> list[int]:
    """Where generation has to stop; adds the chat template's end of turn to our own folder where it is missing."""
    end = stop_token.end_of_turn(tokenizer)
    stops = stop_token.stop_tokens(folder)
    if end is None:
        log.message("the chat template ends an answer with no special token; generation stops at the end of text only")
        return stops
    if end in stops:
        return stops
    name = tokenizer.convert_ids_to_tokens(end)
    if not is_ours:
        log.message(f"{folder}: generation does not stop at the end of turn {name}; give it as a stop token in serving")
        return [*stops, end]
    stop_token.add_stop_token(folder, end)
    log.message(f"generation_config.json: added the chat template's end of turn {name} to eos_token_id")
    return stop_token.stop_tokens(folder)

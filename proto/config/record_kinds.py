"""Rules about the kinds of record in a stage: what mixes with what, and which settings say nothing for a kind."""

from collections.abc import Iterator

from finecut.proto import data_pb2, job_pb2
from finecut.proto.config import reinforcement
from finecut.proto.config.errors import Problem

# What a record becomes. Conversations, texts, logs and event sequences become documents, which mix.
_PAIRS = "preference pairs"
_PROMPTS = "prompts"
_KINDS = {"preference": _PAIRS, "prompt": _PROMPTS}
_DOCUMENTS = "documents"


def check(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Problems of one data_prep stage."""
    data_prep = stage.data_prep
    kinds = [_kind(source) for source in data_prep.sources]
    for number, (source, kind) in enumerate(zip(data_prep.sources, kinds, strict=True)):
        if kind != kinds[0]:
            yield Problem(
                f"{path}.sources[{number}].{source.WhichOneof('record')}",
                f"makes {kind}, and sources[0] makes {kinds[0]}; they cannot stand in one stage: give each a stage",
            )
    yield from _check_semantic_ids(data_prep, path)
    yield from _check_packing(data_prep, set(kinds), path)


def check_training(job: job_pb2.JobConfig, stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Recipes of preferences take pairs, those that sample prompts, the others documents."""
    work = stage.WhichOneof("work") or ""
    if work == "custom":
        return  # which kind it takes shows when its code runs
    wanted = _PAIRS if work in ("dpo", "reward_model") else _DOCUMENTS
    if reinforcement.samples_itself(stage):
        wanted = _PROMPTS
    data = getattr(stage, work).data
    prepare = next((candidate for candidate in job.stages if f"@{candidate.name}" == data), None)
    if prepare is None or prepare.WhichOneof("work") != "data_prep":
        return
    for kind in sorted({_kind(source) for source in prepare.data_prep.sources} - {wanted}):
        yield Problem(f"{path}.data", f'stage "{prepare.name}" makes {kind}, and {work} trains on {wanted}')


def _kind(source: data_pb2.DataSource) -> str:
    return _KINDS.get(source.WhichOneof("record") or "", _DOCUMENTS)


def _check_semantic_ids(data_prep: data_pb2.DataPrep, path: str) -> Iterator[Problem]:
    first: int | None = None
    for number, source in enumerate(data_prep.sources):
        if source.WhichOneof("record") != "event_sequence":
            continue
        count = source.event_sequence.semantic_id_count
        where = f"{path}.sources[{number}].event_sequence.semantic_id_count"
        if not count:
            yield Problem(where, "is required and not set")
            continue
        first = count if first is None else first
        if count != first:
            yield Problem(where, f"{count} where another source of the stage has {first}; all share one vocabulary")


def _check_packing(data_prep: data_pb2.DataPrep, kinds: set[str], path: str) -> Iterator[Problem]:
    packing = data_prep.packing
    if "preference pairs" in kinds and packing.long_documents == data_pb2.Packing.SPLIT:
        yield Problem(
            f"{path}.packing.long_documents",
            "SPLIT would part a preference pair, whose answers are compared as wholes; use REJECT or TRUNCATE",
        )
    if _PROMPTS not in kinds:
        return
    if packing.mode in (data_pb2.Packing.ON_THE_FLY, data_pb2.Packing.NONE):
        name = data_pb2.Packing.Mode.Name(packing.mode)
        yield Problem(f"{path}.packing.mode", f"{name} says nothing for prompts, which are never packed; unset it")
    if packing.long_documents in (data_pb2.Packing.SPLIT, data_pb2.Packing.TRUNCATE):
        name = data_pb2.Packing.LongDocuments.Name(packing.long_documents)
        yield Problem(
            f"{path}.packing.long_documents",
            f"{name} would have a prompt ask something else; unset it; filter.max_tokens leaves long ones out",
        )

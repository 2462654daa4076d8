"""Merging: a job's defaults into its stages, and the contract's defaults into every field."""

import functools
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from finecut.proto import data_pb2, job_pb2, rules_pb2
from finecut.proto.config import build
from finecut.proto.config.tree import Scalar
from finecut.proto.config.walk import is_ours, real_oneofs, rule_of

# Peak learning rate of each kind of stage: of all parameters, and of adapters.
_LEARNING_RATES = {
    "sft": (2e-5, 2e-4),
    "dpo": (5e-7, 5e-6),
    "reward_model": (1e-5, 1e-4),
    "distill": (2e-5, 2e-4),
    "custom": (2e-5, 2e-4),
    "ppo": (1e-6, 1e-5),
    "grpo": (1e-6, 1e-5),
}


def merge(base: Message, over: Message) -> Message:
    """`base` with the fields that `over` sets: messages merge, everything else is replaced."""
    merged = type(base)()
    merged.CopyFrom(base)
    for field, value in over.ListFields():
        if field.is_repeated:
            merged.ClearField(field.name)
            getattr(merged, field.name).MergeFrom(value)
        elif is_ours(field) and merged.HasField(field.name):
            getattr(merged, field.name).CopyFrom(merge(getattr(merged, field.name), value))
        elif field.message_type:
            getattr(merged, field.name).CopyFrom(value)
        else:
            setattr(merged, field.name, value)
    return merged


def merge_job_defaults(job: job_pb2.JobConfig) -> None:
    """Moves `job.defaults` into each stage that trains; the stage's own fields win."""
    for stage in job.stages:
        work = stage.WhichOneof("work")
        if work and "training" in getattr(stage, work).DESCRIPTOR.fields_by_name:
            training = getattr(stage, work).training
            training.CopyFrom(merge(job.defaults, training))
    job.ClearField("defaults")


def fill_learning_rates(job: job_pb2.JobConfig) -> None:
    """Writes out the one default that depends on another field: see Optimizer.learning_rate."""
    for stage in job.stages:
        peaks = _LEARNING_RATES.get(stage.WhichOneof("work") or "")
        if peaks is None:
            continue
        work = getattr(stage, stage.WhichOneof("work") or "")
        if not work.training.optimizer.HasField("learning_rate"):
            work.training.optimizer.learning_rate = peaks[1] if work.model.HasField("lora") else peaks[0]


def fill_messages_fields(job: job_pb2.JobConfig) -> None:
    """Writes out the default that depends on the schema: see ConversationRecord.messages_field."""
    names = {data_pb2.ConversationRecord.OPENAI: "messages", data_pb2.ConversationRecord.SHAREGPT: "conversations"}
    for stage in job.stages:
        for source in stage.data_prep.sources if stage.WhichOneof("work") == "data_prep" else ():
            record = source.conversation
            is_ours_to_fill = source.WhichOneof("record") == "conversation" and not record.HasField("messages_field")
            if is_ours_to_fill and record.schema in names:
                record.messages_field = names[record.schema]


def fill(message: Message) -> None:
    """Writes out the default of every unset field, so that nobody downstream has to know it."""
    for name, member in _default_members(message.DESCRIPTOR):
        if not message.WhichOneof(name):
            message.MergeFrom(_default_of(member))
    for field in _fields_to_fill(message.DESCRIPTOR):
        if field.is_repeated:
            for item in getattr(message, field.name):
                fill(item)
        elif not (message.HasField(field.name) if field.has_presence else getattr(message, field.name)):
            if _has_default(field):
                message.MergeFrom(_default_of(field))
        elif is_ours(field):
            fill(getattr(message, field.name))


@functools.cache
def _default_members(descriptor: Descriptor) -> list[tuple[str, FieldDescriptor]]:
    """Oneofs that have a default, and the field that it is."""
    members = {oneof.name: oneof.GetOptions().Extensions[rules_pb2.default_member] for oneof in real_oneofs(descriptor)}
    return [(name, descriptor.fields_by_name[member]) for name, member in members.items() if member]


@functools.cache
def _fields_to_fill(descriptor: Descriptor) -> list[FieldDescriptor]:
    """Fields that may lack a default, themselves or in what they hold."""
    return [field for field in descriptor.fields if is_ours(field) or (not field.is_repeated and _has_default(field))]


@functools.cache
def _has_default(field: FieldDescriptor) -> bool:
    """Whether it is written out where it is unset; of a oneof's members, `_default_members` says it."""
    rule = rule_of(field)
    if field.containing_oneof in real_oneofs(field.containing_type) or rule.off_when_unset or rule.required:
        return False
    return bool(rule.default) or (is_ours(field) and not rule.unavailable)


@functools.cache
def _default_of(field: FieldDescriptor) -> Message:
    """A message that holds nothing but the field, with its default."""
    message = message_factory.GetMessageClass(field.containing_type)()
    if is_ours(field):
        getattr(message, field.name).SetInParent()
        fill(getattr(message, field.name))
    else:
        problems = build.set_field(message, field, Scalar(rule_of(field).default, False, ""), field.full_name)
        assert not problems, problems
    return message


def is_default(field: FieldDescriptor, value: Any) -> bool:
    """Whether a value is the one that an unset field would take."""
    rule = rule_of(field)
    if not rule.default or field.message_type:
        return False
    return bool(getattr(_default_of(field), field.name) == value)

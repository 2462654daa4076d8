"""Rules of evaluations and deployments that concern several fields."""

import ipaddress
from collections.abc import Iterator

from finecut.proto import delivery_pb2, job_pb2
from finecut.proto.config import gates, reinforcement
from finecut.proto.config.errors import Problem

# What the data of a task holds, by its kind; other tasks need none.
_DATA = {"perplexity": "documents", "generation": "prompts", "win_rate": "prompts", "ranking": "documents"}


def check(job: job_pb2.JobConfig, stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Problems of one evaluate stage."""
    work = stage.evaluate
    names = [task.name for task in work.tasks]
    for number, task in enumerate(work.tasks):
        where = f"{path}.tasks[{number}]"
        if task.name in names[:number]:
            yield Problem(f"{where}.name", f'"{task.name}" is also the name of another task; rename one')
        yield from _check_task(job, task, where)
    if work.HasField("while_training"):
        yield from _check_while_training(job, work, path)
    measured = {task.name: gates.metrics(task) for task in work.tasks}
    for number, text in enumerate(work.gates):
        try:
            gates.choose_task(gates.parse(text), measured)
        except gates.GateError as error:
            yield Problem(f"{path}.gates[{number}]", str(error))


def check_deploy(work: delivery_pb2.Deploy, path: str) -> Iterator[Problem]:
    """Problems of one deploy stage."""
    shares = list(work.canary.traffic_percent)
    if shares != sorted(set(shares)) or not all(0 < share <= 100 for share in shares):
        listed = ", ".join(map(str, shares))
        yield Problem(f"{path}.canary.traffic_percent", f"{listed} must ascend, from 1 to 100; write 5, 50, 100")
    in_cluster = work.placement == delivery_pb2.Deploy.CLUSTER
    if in_cluster and not work.HasField("serve_for"):
        yield Problem(
            f"{path}.serve_for",
            "is needed with placement CLUSTER, whose nodes are kept and paid for so long; write serve_for"
            " { seconds: 3600 } for an hour",
        )
    if not in_cluster and work.HasField("serve_for"):
        yield Problem(f"{path}.serve_for", "is for placement CLUSTER; an endpoint of its own lives until it is ended")
    yield from _check_listening(work, path)


def _check_listening(work: delivery_pb2.Deploy, path: str) -> Iterator[Problem]:
    try:
        address = ipaddress.ip_address(work.listen_address)
    except ValueError:
        yield Problem(
            f"{path}.listen_address", f'"{work.listen_address}" is not an IP address; write one, or 127.0.0.1'
        )
        return
    if address.is_loopback:
        return
    for name, why in (("api_key", "anybody could ask"), ("tls", "keys and answers would be read on their way")):
        if not work.HasField(name):
            yield Problem(f"{path}.{name}", f"is needed where others reach {address}, or {why}; set it")


def _check_while_training(job: job_pb2.JobConfig, work: delivery_pb2.Evaluate, path: str) -> Iterator[Problem]:
    trained = next((stage for stage in job.stages if f"@{stage.name}" == work.model), None)
    if trained is None or not reinforcement.samples_itself(trained):
        yield Problem(
            f"{path}.while_training",
            f'"{work.model}" has no rollout engines to ask; unset it, or evaluate "@stage" of ppo, grpo, or a distill'
            " with a rollout",
        )
    for number, task in enumerate(work.tasks):
        if task.WhichOneof("kind") != "generation":
            yield Problem(
                f"{path}.tasks[{number}]",
                f"{task.WhichOneof('kind')} is not measured by answers of rollout engines; while_training takes"
                " generation, so move the task to an evaluate stage of its own",
            )


def _check_task(job: job_pb2.JobConfig, task: delivery_pb2.Evaluate.Task, path: str) -> Iterator[Problem]:
    kind = task.WhichOneof("kind") or ""
    wanted = _DATA.get(kind)
    if wanted and not task.data:
        yield Problem(f"{path}.data", f'{kind} needs prepared {wanted}; name a data_prep stage, as "@stage"')
    prepare = next((stage for stage in job.stages if f"@{stage.name}" == task.data), None)
    if wanted and prepare is not None and prepare.WhichOneof("work") == "data_prep":
        records = {source.WhichOneof("record") for source in prepare.data_prep.sources}
        if (records == {"prompt"}) != (wanted == "prompts"):
            yield Problem(f"{path}.data", f'{kind} reads {wanted}, which stage "{prepare.name}" does not make')
        elif kind == "ranking" and records != {"event_sequence"}:
            yield Problem(f"{path}.data", f'ranking reads event sequences, which stage "{prepare.name}" does not make')
        if task.split == "evaluation" and not _is_split(prepare):
            yield Problem(
                f"{path}.split",
                f'stage "{prepare.name}" holds nothing out; set its evaluation.fraction, or split: "train" where all of'
                " it is for evaluation",
            )
    for position, reward in enumerate(task.generation.verifiers):
        if reward.WhichOneof("source") == "model":
            yield Problem(
                f"{path}.generation.verifiers[{position}].model",
                "a reward model says nothing about one answer alone; compare two models with win_rate",
            )
        if reward.WhichOneof("source") == "overlong":
            yield Problem(
                f"{path}.generation.verifiers[{position}].overlong",
                "charges for length, which is not accuracy; unset it",
            )
    for position, cutoff in enumerate(task.ranking.cutoffs):
        if cutoff < 1:
            yield Problem(f"{path}.ranking.cutoffs[{position}]", f"{cutoff} is less than 1, the first place")


def _is_split(prepare: job_pb2.Stage) -> bool:
    return prepare.data_prep.evaluation.fraction > 0

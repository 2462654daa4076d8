"""The DAG of stages: what refers to what, and in which order they can run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finecut.proto import job_pb2, rules_pb2
from finecut.proto.config import gates
from finecut.proto.config.errors import Problem, suggestion
from finecut.proto.config.walk import references

_MAKES_DATA = {"data_prep"}
_MAKES_MODEL = {"sft", "dpo", "reward_model", "distill", "ppo", "grpo", "custom", "export"}
# What a gate compares with; a value that no rule of a field has.
_MEASURABLE = -1
_MAKERS = {
    _MEASURABLE: ("something to compare with", _MAKES_MODEL | {"evaluate"}),
    rules_pb2.REFERENCE_DATA: ("prepared data", _MAKES_DATA),
    rules_pb2.REFERENCE_MODEL: ("a model", _MAKES_MODEL),
    rules_pb2.REFERENCE_EVALUATION: ("an evaluation", {"evaluate"}),
}


@dataclass(frozen=True)
class Edge:
    """`stage` needs the artifact of `needs`.

    Attributes:
      kind: What the field wants (a Reference), None for a mere order ("after").
    """

    stage: str
    needs: str
    path: str
    kind: int | None


def edges(job: job_pb2.JobConfig) -> Iterator[Edge]:
    """Every "@stage" in the job."""
    for index, stage in enumerate(job.stages):
        for found in references(stage, f"stages[{index}]"):
            if not isinstance(found.value, str) or not found.value.startswith("@"):
                continue
            if found.field.full_name == "finecut.v1.Stage.after":
                yield Edge(stage.name, found.value[1:], found.path, None)
            elif found.rule.reference:
                yield Edge(stage.name, found.value[1:], found.path, found.rule.reference)
        yield from _measured_while_training(job, stage, f"stages[{index}]")
        for number, baseline in gates.baselines(stage.evaluate):
            yield Edge(stage.name, baseline, f"stages[{index}].evaluate.gates[{number}]", _MEASURABLE)


def _measured_while_training(job: job_pb2.JobConfig, stage: job_pb2.Stage, path: str) -> Iterator[Edge]:
    """A stage that is measured while it trains needs the data of those tasks by then."""
    for evaluation in measuring(job, stage.name):
        for task in evaluation.evaluate.tasks:
            if task.data.startswith("@"):
                yield Edge(stage.name, task.data[1:], path, None)


def measuring(job: job_pb2.JobConfig, stage: str) -> list[job_pb2.Stage]:
    """Evaluate stages that measure the model of `stage` while it trains."""
    return [
        found
        for found in job.stages
        if found.evaluate.model == f"@{stage}" and found.evaluate.HasField("while_training")
    ]


def check(job: job_pb2.JobConfig) -> list[Problem]:
    """Duplicate names, references to nothing or to the wrong thing, cycles."""
    problems = list(_duplicates(job))
    work = {stage.name: stage.WhichOneof("work") for stage in job.stages}
    for index, stage in enumerate(job.stages):
        for position, name in enumerate(stage.after):
            if not name.startswith("@"):
                problems.append(
                    Problem(f"stages[{index}].after[{position}]", f'"{name}" is not a stage; write "@{name}"')
                )
    found = list(edges(job))
    for edge in found:
        if edge.needs not in work:
            hint = suggestion(f"@{edge.needs}", [f"@{name}" for name in work if name != edge.stage])
            problems.append(Problem(edge.path, f'"@{edge.needs}" is not a stage of this job; {hint}'))
        elif edge.kind in _MAKERS and work[edge.needs] not in _MAKERS[edge.kind][1]:
            wanted, makers = _MAKERS[edge.kind]
            problems.append(
                Problem(
                    edge.path,
                    f'"@{edge.needs}" is a {work[edge.needs]} stage, which does not make {wanted}; '
                    f"name a stage of kind {', '.join(sorted(makers))}",
                )
            )
        elif edge.kind in (rules_pb2.REFERENCE_FILES, rules_pb2.REFERENCE_OUTPUT):
            problems.append(Problem(edge.path, f'"@{edge.needs}" is a stage; a path is needed here'))
    if cycle := _cycle(_needs(job, found)):
        problems.append(
            Problem("stages", f"wait for each other in a circle: {' -> '.join(cycle)}; remove one reference")
        )
    return problems


def waves(job: job_pb2.JobConfig) -> list[list[str]]:
    """Stage names in the order they can run; those of one wave do not depend on each other. The job must be valid."""
    needs = _needs(job, edges(job))
    done: set[str] = set()
    result = []
    while len(done) < len(needs):
        wave = [name for name in needs if name not in done and needs[name] <= done]
        assert wave, "the job has a cycle"
        result.append(wave)
        done.update(wave)
    return result


def upstream(job: job_pb2.JobConfig, stage: str) -> list[str]:
    """Stages whose artifacts or completion this one needs directly, sorted."""
    return sorted(_needs(job, edges(job))[stage])


def _needs(job: job_pb2.JobConfig, found: Iterable[Edge]) -> dict[str, set[str]]:
    needs: dict[str, set[str]] = {stage.name: set() for stage in job.stages}
    for edge in found:
        if edge.needs in needs:
            needs[edge.stage].add(edge.needs)
    return needs


def _duplicates(job: job_pb2.JobConfig) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, stage in enumerate(job.stages):
        if stage.name and stage.name in first:
            yield Problem(
                f"stages[{index}].name", f'"{stage.name}" is also the name of stages[{first[stage.name]}]; rename one'
            )
        first.setdefault(stage.name, index)


def _cycle(needs: dict[str, set[str]]) -> list[str] | None:
    """One cycle, closed, or None."""
    finished: set[str] = set()

    def search(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in finished:
            return None
        for needed in sorted(needs[name]):
            if found := search(needed, [*trail, name]):
                return found
        finished.add(name)
        return None

    return next((cycle for name in needs if (cycle := search(name, []))), None)

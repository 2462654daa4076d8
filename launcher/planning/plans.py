"""A job's whole plan, as `plan` prints it and PlanJob answers with it: what runs, where, and what it takes."""

from __future__ import annotations

import dataclasses

from finecut.launcher import planner
from finecut.launcher.planning import admission, estimates, hardware, serving, workloads
from finecut.launcher.planning.estimates import Estimate
from finecut.launcher.providers import registry
from finecut.launcher.providers.provider import ClusterPlan
from finecut.proto import job_pb2, plan_pb2, service_pb2, training_pb2
from finecut.trainer.planning import proposals
from finecut.trainer.planning.memory import Memory
from finecut.trainer.planning.workload import Layout


def of_job(job: job_pb2.JobConfig, devices: str = "") -> service_pb2.PlanJobResponse:
    """Plans a resolved, valid job; starts nothing.

    Args:
      devices: For which, as `hardware.parse` reads them. Empty: those that the job would get.
    """
    plan = planner.plan(job)
    machines = [hardware.parse(devices)] if devices else hardware.choices(job)
    planned = [estimates.of_job(job, choice) for choice in machines]
    found, missing = planned[0] if planned else ({}, _on_other_hosts(job))
    refused = [problem for choice, _ in planned for problem in admission.problems(choice.values())]
    refused += serving.problems(job, machines)
    total = estimates.total(found.values())
    return service_pb2.PlanJobResponse(
        config=job,
        waves=[service_pb2.PlanJobResponse.Wave(stages=[stage.name for stage in wave]) for wave in plan.waves],
        root=plan.root,
        stages=[_stage(stage, found.get(stage.name), missing.get(stage.name)) for wave in plan.waves for stage in wave],
        machines=_machines(registry.plan(job)),
        total=plan_pb2.TrainingTotal(
            hours=total.hours,
            cost_usd=total.cost_usd,
            not_counted=[name for name in plan.order if name not in found],
        ),
        problems=[service_pb2.Problem(path=problem.path, message=problem.message) for problem in refused],
    )


def _on_other_hosts(job: job_pb2.JobConfig) -> dict[str, str]:
    """Why the stages of static hosts have no estimate."""
    reason = "which GPUs the hosts have shows only there; plan for them with --hardware=8xH100"
    return {stage.name: reason for stage in job.stages if workloads.is_training(stage)}


def _stage(stage: planner.StagePlan, found: Estimate | None, missing: str | None) -> plan_pb2.StagePlan:
    return plan_pb2.StagePlan(
        name=stage.name,
        kind=stage.kind,
        needs=stage.needs,
        reads=stage.reads,
        writes=stage.writes,
        settings=[
            plan_pb2.StagePlan.Setting(name=name, value=planner.text(value)) for name, value in stage.numbers.items()
        ],
        estimate=_estimate(found) if found else None,
        no_estimate=missing,
    )


def _estimate(found: Estimate) -> plan_pb2.StageEstimate:
    return plan_pb2.StageEstimate(
        hardware=str(found.hardware),
        device=found.hardware.device.name,
        device_count=found.hardware.count,
        device_memory_bytes=found.hardware.device.memory,
        parameter_count=found.parameters.total,
        trained_parameter_count=found.parameters.trained,
        layout=_layout(found.layout),
        memory=_memory(found.memory),
        fits=found.fits,
        cannot_fit=found.cannot_fit,
        error_share=found.error,
        flops_per_token=found.flops_per_token,
        tokens_per_second=found.tokens_per_second,
        step_seconds=found.step_seconds,
        mfu=found.mfu,
        step_count=found.steps,
        hours=found.hours,
        cost_usd=found.cost_usd,
        proposal=found.proposal or "",
        notes=found.notes,
    )


def _layout(layout: Layout) -> plan_pb2.PlannedLayout:
    return plan_pb2.PlannedLayout(
        shard_size=layout.shard_size,
        replicate_size=layout.replicate_size,
        tensor_parallel_size=layout.tensor_size,
        micro_blocks=layout.micro_blocks,
        activation_checkpointing=training_pb2.ActivationCheckpointing.Value(layout.recompute.value),
        offload_optimizer=layout.offload_optimizer,
        description=proposals.describe(layout),
    )


def _memory(memory: Memory) -> plan_pb2.MemoryEstimate:
    held = {f"{name}_bytes": size for name, size in dataclasses.asdict(memory).items()}
    return plan_pb2.MemoryEstimate(**held, total_bytes=memory.total)


def _machines(cluster: ClusterPlan) -> plan_pb2.MachinesPlan:
    planned = plan_pb2.MachinesPlan(
        provider=cluster.provider,
        description=str(cluster),
        node_count=cluster.node_count,
        cpu_count=cluster.cpu_count,
        gpu_count=cluster.gpu_count,
        object_store_bytes=cluster.object_store_bytes,
    )
    if bought := cluster.purchase:
        planned.purchase.cost = bought.cost
        planned.purchase.order.extend(bought.order)
        for request in bought.requests:
            planned.purchase.requests.add().update(request)
        planned.purchase.policy.update(bought.policy)
        planned.purchase.launcher_policy.update(bought.launcher_policy)
    return planned

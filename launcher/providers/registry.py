"""From a job to the provider of its machines."""

from finecut.launcher.providers.provider import ClusterPlan, Provider
from finecut.proto import job_pb2
from finecut.proto.run import RunFolder


def provider_of(job: job_pb2.JobConfig, folder: RunFolder) -> Provider:
    """The provider that a resolved job names."""
    match job.cluster.WhichOneof("provider"):
        case "aws":
            from finecut.launcher.providers.aws.provider import AwsProvider  # boto3 takes a while to import

            return AwsProvider(job, folder)
        case "static":
            from finecut.launcher.providers.static import StaticProvider

            return StaticProvider(job, folder)
        case _:
            from finecut.launcher.providers.local import LocalProvider

            return LocalProvider(folder)


def plan(job: job_pb2.JobConfig) -> ClusterPlan:
    """The machines of a resolved job; nothing is touched. Raises UserError for a job that they cannot do."""
    if job.cluster.WhichOneof("provider") == "aws":
        from finecut.launcher.providers.aws import planning

        return planning.plan(job)
    return provider_of(job, RunFolder.of(job)).plan(job)

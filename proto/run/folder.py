"""Where the parts of a run are."""

from dataclasses import dataclass
from pathlib import Path

from finecut.proto import job_pb2


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, `<storage.root>/<job.name>`. Nothing is created or read here."""

    root: Path

    @classmethod
    def of(cls, job: job_pb2.JobConfig) -> "RunFolder":
        """The folder of a resolved job."""
        return cls(Path(job.storage.root) / job.name)

    @property
    def config(self) -> Path:
        """The resolved config that this run was started with."""
        return self.root / "job.textproto"

    @property
    def page(self) -> Path:
        """What people read when the run has ended."""
        return self.root / "report.html"

    def stage(self, name: str) -> Path:
        """Everything that one stage keeps."""
        return self.root / "stages" / name

    def artifact(self, name: str) -> Path:
        """The stage's output. It counts only once it holds a manifest."""
        return self.stage(name) / "artifact"

    def checkpoints(self, name: str) -> Path:
        return self.stage(name) / "checkpoints"

    def checkpoint_place(self, job: job_pb2.JobConfig, name: str) -> str:
        """Folder or URL of a stage's checkpoints: in the run, or where checkpointing.folder says."""
        stage = next(stage for stage in job.stages if stage.name == name)
        work = getattr(stage, stage.WhichOneof("work") or "")
        trains = "training" in work.DESCRIPTOR.fields_by_name
        folder = work.training.checkpointing.folder if trains else ""
        return f"{folder.rstrip('/')}/{job.name}/{name}" if folder else str(self.checkpoints(name))

    def ranks(self, name: str) -> Path:
        """What the ranks of a stage report while they run."""
        return self.stage(name) / "ranks"

    def tensorboard(self, name: str) -> Path:
        return self.stage(name) / "tensorboard"

    def events(self, name: str) -> Path:
        return self.stage(name) / "events.jsonl"

    def locate(self, reference: str) -> Path:
        """The artifact folder behind "@stage"; any other path as it is."""
        return self.artifact(reference[1:]) if reference.startswith("@") else Path(reference)

"""A look at a sample before all of the data: what is wrong with it shows within seconds, and nothing is kept."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finecut.dataprep import segments
from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.filtering import Filter
from finecut.dataprep.prepare import prepare, run_segments
from finecut.dataprep.problems import Problems
from finecut.dataprep.review import REPORT, review
from finecut.dataprep.segment_work import SegmentWorker
from finecut.dataprep.segments import Outcome
from finecut.proto import artifact_pb2, data_pb2
from finecut.proto.run.events import EventLog, follow

# Records of each source.
DRY_RUN_RECORDS = 256
REHEARSAL_RECORDS = 16


@dataclass(frozen=True)
class DryRun:
    """What a sample gave: the numbers of a manifest, and what a run would have logged."""

    data: artifact_pb2.DataArtifact
    messages: Sequence[str]


def rehearse(worker: SegmentWorker) -> None:
    """Tokenizes and masks a few records of each source. Raises UserError for what would stop all of them."""
    config = worker.config
    with tempfile.TemporaryDirectory(prefix="finecut-") as folder:
        problems = Problems(config.max_bad_records, config.max_truncated_fraction)
        plan = segments.sample(config, REHEARSAL_RECORDS)
        for _ in run_segments(worker, plan, Path(folder), _show_nothing, problems, Filter(config.filter)):
            pass


def dry_run(stage: data_pb2.DataPrep, report: Path) -> DryRun:
    """Does all that a run does, linter included, with a sample, and keeps only the report.

    Nothing is held out, and cut documents are counted without a budget: a sample says little about shares. Raises
    UserError, as a run does.
    """
    sampled = data_pb2.DataPrep.FromString(stage.SerializeToString())
    sampled.evaluation.fraction = 0
    sampled.error_budget.max_truncated_fraction = 1
    config = PrepareConfig.from_proto(sampled)
    with tempfile.TemporaryDirectory(prefix="finecut-") as name:
        folder = Path(name)
        artifact = folder / "artifact"
        artifact.mkdir()
        with EventLog(folder / "events.jsonl", "dry-run") as log:
            worker = SegmentWorker(config)
            manifest = prepare(worker, segments.sample(config, DRY_RUN_RECORDS), artifact, folder / "work", log)
        review(artifact, manifest, sampled, worker.tokenizer)
        report.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact / REPORT, report)
        messages = [event.message for event in follow(folder / "events.jsonl")[0] if event.message]
    return DryRun(manifest.data, messages)


def _show_nothing(outcomes: Sequence[Outcome]) -> None:
    del outcomes

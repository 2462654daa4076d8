"""What data preparation works on at a time: a file or a part of one, and what became of it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finecut.dataprep import readers
from finecut.dataprep.config import PrepareConfig, SourceConfig
from finecut.dataprep.records import BadRecord
from finecut.dataprep.storage import WHOLE, InputFile, Span
from finecut.proto.config import UserError

# A segment is some seconds of work: what a kill loses, and what processes wait for at the end.
SEGMENT_BYTES = 4 << 20
# Files of a source that a sample is taken from.
_SAMPLE_FILES = 4


@dataclass(frozen=True)
class Segment:
    """A part of one input. Segments are numbered in reading order."""

    number: int
    source: SourceConfig
    path: InputFile
    span: Span
    num_bytes: int  # about, as they stand in the file; only to judge how much work it is
    max_records: int | None = None  # of a sample: what stands behind so many is left out


@dataclass
class Outcome:
    """What one segment gave beside documents.

    Attributes:
      num_records: Read, bad ones among them.
      num_documents, num_tokens: Written.
      num_bad: Bad records; `bad` lists the first of them.
      removed: Records left out by the filter, by the name of the condition.
      sha256: Of the file of documents.
    """

    num_records: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    num_bad: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """All of the input.

    Attributes:
      segments: In reading order. They depend on the files alone, never on the machine.
      num_records: About; 0 where it cannot be known.
      fingerprint: SHA-256 over the fingerprint of every input file, in reading order.
    """

    segments: Sequence[Segment]
    num_records: int
    fingerprint: str


def plan(config: PrepareConfig) -> Plan:
    """Reads every local input once. Raises UserError for a path that is wrong or a file that is damaged."""
    segments: list[Segment] = []
    fingerprints, num_records = [], 0
    for source, path in find_inputs(config):
        survey = readers.survey(source, path, SEGMENT_BYTES)
        num_bytes = path.stat().st_size // max(len(survey.spans), 1) if isinstance(path, Path) else SEGMENT_BYTES
        segments += [Segment(n, source, path, span, num_bytes) for n, span in enumerate(survey.spans, len(segments))]
        fingerprints.append(survey.fingerprint)
        num_records += survey.num_records
    return Plan(segments, num_records, combine_fingerprints(fingerprints))


def sample(config: PrepareConfig, num_records: int) -> Plan:
    """Some first records of a few files of each source: what can be looked at within seconds, however much there is.

    Raises UserError for a path that is wrong.
    """
    segments: list[Segment] = []
    inputs = find_inputs(config)
    for source in config.sources:
        paths = [path for owner, path in inputs if owner is source]
        chosen = paths[:: max(1, len(paths) // _SAMPLE_FILES)][:_SAMPLE_FILES]
        share = -(-num_records // max(len(chosen), 1))
        segments += [Segment(n, source, path, WHOLE, 0, share) for n, path in enumerate(chosen, len(segments))]
    return Plan(segments, num_records * len(config.sources), "")


def combine_fingerprints(fingerprints: Sequence[str]) -> str:
    """One for all inputs."""
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def find_inputs(config: PrepareConfig) -> list[tuple[SourceConfig, InputFile]]:
    """All files of all sources in reading order; all paths that are wrong are reported together."""
    inputs: list[tuple[SourceConfig, InputFile]] = []
    names = Counter(source.name for source in config.sources)
    complaints = [f"sources: {n} are named {name!r}; give each a name" for name, n in names.items() if n > 1]
    for source in config.sources:
        try:
            inputs += [(source, path) for path in readers.files_of(source)]
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))
    return inputs

"""The last look at prepared data before it becomes an artifact: one pass over its shards, lint and statistics together.

Alone, on a finished artifact, it is `dataprep lint`.
"""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finecut.dataprep import shard_files, tokenization
from finecut.dataprep.document_blocks import open_blocks
from finecut.dataprep.lint.findings import Findings
from finecut.dataprep.lint.layout import Layout
from finecut.dataprep.lint.linter import RULE_NAMES, Linter
from finecut.dataprep.lint.rules import Expectations
from finecut.dataprep.report.page import write_report
from finecut.dataprep.report.statistics import Statistics
from finecut.dataprep.shards import BlockReader
from finecut.dataprep.split import EVALUATION
from finecut.proto import artifact_pb2, data_pb2
from finecut.proto.config import UserError

REPORT = "report.html"
# Tokens looked at together: a batch takes some tens of megabytes.
BATCH_TOKENS = 1 << 20


def review(
    folder: Path, manifest: artifact_pb2.Artifact, stage: data_pb2.DataPrep, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes the report into the folder of shards whose manifest is not written yet.

    Raises UserError with the findings where the data must not be trained on.
    """
    statistics = Statistics(manifest.data.block_size)
    _look(folder, manifest, stage, tokenizer, statistics).check()
    readers = {split.name: open_blocks(folder, split.name, manifest) for split in manifest.data.splits}
    write_report(folder / REPORT, manifest, statistics, readers, tokenizer)


def lint(folder: Path, manifest: artifact_pb2.Artifact, stage: data_pb2.DataPrep) -> Findings:
    """Looks at a finished artifact again. Raises UserError where the tokenizer is not the one it was made with."""
    tokenizer = _tokenizer(stage)
    if tokenization.fingerprint(tokenizer) != manifest.fingerprints.tokenizer:
        raise UserError(
            f"{folder} was prepared with another tokenizer or chat template than {stage.tokenization.tokenizer!r}; "
            "prepare it again under another job name"
        )
    return _look(folder, manifest, stage, tokenizer, None)


def summary(findings: Findings, data: artifact_pb2.DataArtifact) -> str:
    """A table of all rules with how often each is broken."""
    width = max(map(len, RULE_NAMES))
    counts = findings.count_by_rule
    is_prompts = data.kind == artifact_pb2.DataArtifact.PROMPTS
    unpacked = ", for rollouts" if is_prompts else ", packed by the trainer"
    lines = [
        f"{split.name}: {shard_files.count_in_words(split, data)}"
        + (f" in {split.block_count:,} blocks" if split.block_count else unpacked)
        for split in data.splits
    ]
    lines += [f"  {name:<{width}}  {f'{counts[name]:,} found' if counts[name] else 'ok'}" for name in RULE_NAMES]
    return "\n".join(lines)


def _look(
    folder: Path,
    manifest: artifact_pb2.Artifact,
    stage: data_pb2.DataPrep,
    tokenizer: PreTrainedTokenizerBase,
    statistics: Statistics | None,
) -> Findings:
    linter = Linter(Expectations.of(stage, manifest.data, tokenizer), tokenizer)
    # Evaluation first, as the linter wants it.
    for split in sorted(manifest.data.splits, key=lambda split: split.name != EVALUATION):
        for first_block, layout in _batches(open_blocks(folder, split.name, manifest)):
            linter.add(split.name, layout, first_block)
            if statistics:
                statistics.add(split.name, layout)
    return linter.finish(manifest.data)


def _batches(reader: BlockReader) -> Iterator[tuple[int, Layout]]:
    size = max(1, BATCH_TOKENS // reader.block_size)
    for first in range(0, len(reader), size):
        yield first, Layout.of(reader.read(range(first, min(first + size, len(reader)))))


def _tokenizer(stage: data_pb2.DataPrep) -> PreTrainedTokenizerBase:
    template = stage.tokenization.chat_template_file or None
    # Texts and ids have no turns, so a tokenizer without a template will do for them.
    has_turns = any(source.WhichOneof("record") not in ("text", "event_sequence") for source in stage.sources)
    return tokenization.load(stage.tokenization.tokenizer, template, has_turns, stage.tokenization.added_tokens)

"""Writes report.html. It needs nothing but itself: styles and plots are inside, and there are no scripts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.report import html
from finecut.dataprep.report.samples import BlockSample, sample_block
from finecut.dataprep.report.statistics import Histogram, SplitCounts, Statistics, histograms
from finecut.dataprep.shards import BlockReader
from finecut.proto import artifact_pb2
from finecut.proto.run import files

# Samples of the first split, of each other, and how much of a block: together below half a megabyte.
NUM_BLOCKS = 8
NUM_OTHER_BLOCKS = 2
MAX_TOKENS = 400
_PAIRS, _PROMPTS = artifact_pb2.DataArtifact.PAIRS, artifact_pb2.DataArtifact.PROMPTS
_LAYOUTS = {_PAIRS: "Preference pairs in blocks of", _PROMPTS: "Prompts of up to"}


@dataclass(frozen=True)
class SplitSection:
    """What the page says about one split."""

    numbers: artifact_pb2.DataArtifact.Split
    counts: SplitCounts
    histograms: list[Histogram]
    samples: list[BlockSample]


def write_report(
    path: Path,
    manifest: artifact_pb2.Artifact,
    statistics: Statistics,
    readers: Mapping[str, BlockReader],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Equal data gives an equal file: it carries no time and no place."""
    sections: list[SplitSection] = []
    for split in manifest.data.splits:
        counts = statistics.splits[split.name]
        number = NUM_BLOCKS if not sections else NUM_OTHER_BLOCKS
        samples = list(_samples(readers[split.name], number, tokenizer, manifest.data.kind == _PAIRS))
        sections.append(SplitSection(split, counts, histograms(counts), samples))
    template = html.environment(Path(__file__).parent).get_template("report.html.jinja")
    page = template.render(
        manifest=manifest,
        data=manifest.data,
        sections=sections,
        layout=_LAYOUTS.get(manifest.data.kind, "Blocks of"),
        unpacked="for rollouts" if manifest.data.kind == _PROMPTS else "packed by the trainer",
    )
    files.write_atomically(path, page)


def _samples(
    reader: BlockReader, number: int, tokenizer: PreTrainedTokenizerBase, pairs: bool
) -> Iterator[BlockSample]:
    """Blocks at even distances, the first and the last among them."""
    special_ids = frozenset(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    for index in np.unique(np.linspace(0, len(reader) - 1, number).astype(int)).tolist():
        yield sample_block(reader.read([index]), index, tokenizer, special_ids, MAX_TOKENS, pairs)

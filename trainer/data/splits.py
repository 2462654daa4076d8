"""Opens the splits of a prepared artifact: readers of blocks, and the order that training takes them in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finecut.dataprep import shard_files
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.shards import SplitReader
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.trainer.config import TrainingConfig
from finecut.trainer.data.mix import Mix
from finecut.trainer.data.on_the_fly import OnTheFlyReader
from finecut.trainer.data.order import BlockOrder, MixedOrder, Order, PlannedOrder
from finecut.trainer.data.source_rows import Sources, parts_of
from finecut.trainer.data.streams import BlockStream, PlanStream, Stream, seed_of_source

# Muennighoff et al. (2023): what repeated tokens are worth decays with a constant of 15 epochs.
_MANY_EPOCHS = 15


@dataclasses.dataclass(frozen=True)
class TrainSplit:
    """What training reads, in which order, and where it comes from."""

    reader: SplitReader | OnTheFlyReader
    order: Order
    sources: Sources

    def notes(self, total_steps: int) -> Iterator[str]:
        """How often each source of a mix is seen in the whole run, and a warning where that is very often."""
        if not isinstance(self.order, MixedOrder):
            return
        mix, position = self.order.mix, self.order.position(total_steps)
        taken = mix.taken(position)
        epochs = mix.epochs(position)
        listed = ", ".join(
            f"{part.name} {blocks:,} blocks ({blocks / max(1, position):.1%}), {times:.2f} times"
            for part, blocks, times in zip(mix.parts, taken.tolist(), epochs, strict=True)
        )
        yield f"mix of the run: {listed}"
        for part, times in zip(mix.parts, epochs, strict=True):
            if times > _MANY_EPOCHS:
                yield (
                    f"warning: {part.name} is seen {times:.1f} times; repeated text is worth little after"
                    f" {_MANY_EPOCHS} times; lower its share, or give it more records"
                )


def open_train(folder: Path, manifest: artifact_pb2.Artifact, training: TrainingConfig, verify: bool) -> TrainSplit:
    """The train split. Raises UserError where it is damaged or empty, or a source with a weight has nothing."""
    data, seed = manifest.data, training.seed
    if manifest.WhichOneof("content") != "data" or shard_files.is_packed(manifest):
        reader = SplitReader(folder, "train", verify)
        _check_not_empty(folder, len(reader))
        sources = Sources.of(data, "train", reader.num_tokens)
        if not _is_mixed(data):
            return TrainSplit(reader, BlockOrder.of(training, len(reader)), sources)
        rows = [sources.rows(number) for number in range(len(sources))]
        mix = Mix(parts_of(data, sources, [len(blocks_N) for blocks_N in rows]))
        streams: list[Stream] = [
            BlockStream(blocks_N, len(reader), seed_of_source(seed, number)) for number, blocks_N in enumerate(rows)
        ]
        return TrainSplit(reader, MixedOrder.of(training, mix, tuple(streams)), sources)

    documents = DocumentReader(folder, "train", verify)
    _check_not_empty(folder, len(documents))
    sources = Sources.of(data, "train", documents.lengths_N)
    if not _is_mixed(data):
        planned = OnTheFlyReader(documents, [seed])
        return TrainSplit(planned, PlannedOrder.of(training, planned.plans[0]), sources)
    planned = _apart(documents, sources, seed)
    mix = Mix(parts_of(data, sources, [plan.blocks_in(epochs=1) for plan in planned.plans]))
    streams = [PlanStream(plan, number, len(planned.plans)) for number, plan in enumerate(planned.plans)]
    return TrainSplit(planned, MixedOrder.of(training, mix, tuple(streams)), sources)


def open_held_out(
    folder: Path, manifest: artifact_pb2.Artifact, seed: int
) -> tuple[SplitReader | OnTheFlyReader, dict[str, np.ndarray]]:
    """The evaluation split, and what its reader calls the blocks of each source, once; files are checked already."""
    if shard_files.is_packed(manifest):
        reader = SplitReader(folder, "evaluation", verify=False)
        sources = Sources.of(manifest.data, "evaluation", reader.num_tokens)
        found = {name: sources.rows(number) for number, name in enumerate(sources.names)}
        return reader, _without_empty(found)
    documents = DocumentReader(folder, "evaluation", verify=False)
    sources = Sources.of(manifest.data, "evaluation", documents.lengths_N)
    planned = _apart(documents, sources, seed)
    streams = [PlanStream(plan, number, len(planned.plans)) for number, plan in enumerate(planned.plans)]
    found = {
        name: np.array([stream.index(position) for position in range(stream.num_blocks)], np.int64)
        for name, stream in zip(sources.names, streams, strict=True)
    }
    return planned, _without_empty(found)


def _is_mixed(data: artifact_pb2.DataArtifact) -> bool:
    return any(source.WhichOneof("mixing") for source in data.sources)


def _apart(documents: DocumentReader, sources: Sources, seed: int) -> OnTheFlyReader:
    """Each source packed by itself."""
    if len(sources) == 1:
        return OnTheFlyReader(documents, [seed])
    numbers = range(len(sources))
    seeds = [seed_of_source(seed, number) for number in numbers]
    return OnTheFlyReader(documents, seeds, [sources.rows(number) for number in numbers])


def _without_empty(blocks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: blocks_N for name, blocks_N in blocks.items() if len(blocks_N)}


def _check_not_empty(folder: Path, num_rows: int) -> None:
    if not num_rows:
        raise UserError(f"{folder}: the train split is empty; give data_prep more records")

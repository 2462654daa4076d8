"""The endless stream of prompts that rollouts start from: a pure function of seed and position.

Whoever knows the position of a run goes on exactly there, whatever the number of ranks or engines; which rank takes
which prompt is no matter of the stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finecut.dataprep.documents import show_example_id
from finecut.dataprep.prompt_shards import PromptReader
from finecut.proto.config import UserError
from finecut.trainer.data.mix import Mix
from finecut.trainer.data.source_rows import Sources, parts_of
from finecut.trainer.data.streams import BlockStream, seed_of_source


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """One prompt.

    PromptRow(record_id="maths/00c0ffee00c0ffee", token_ids=(1, 5, 9), record={"source": "maths", "reference": "42",
              "verifier": None})
    """

    # The source, and the example id under which `find_example` shows the record.
    record_id: str
    # Up to where the model answers.
    token_ids: tuple[int, ...]
    # What data preparation kept: "source", and "reference" and "verifier", which may be None.
    record: Mapping[str, Any]


class PromptStream:
    """The prompts of one split, in another order each epoch; sources of the train split as the job mixes them.

    Attributes:
      num_prompts: In an epoch.
      longest: Tokens of the longest prompt.
    """

    def __init__(self, folder: Path, split: str, seed: int, verify: bool = True) -> None:
        """Opens `split` ("train" or "evaluation"). Raises UserError where it is damaged, empty, or holds no prompts.

        Args:
          verify: Whether checksums are compared; one rank does.
        """
        self._reader = PromptReader(folder, split, verify)
        if not len(self._reader):
            raise UserError(f"{folder}: split {split!r} has no prompts; prepare more records")
        data = self._reader.manifest.data
        sources = Sources.of(data, split, self._reader.lengths_N)
        rows = [sources.rows(number) for number in range(len(sources))]
        parts = parts_of(data, sources, [len(rows_N) for rows_N in rows])
        if split != "train":  # what is held out is taken once an epoch
            parts = [dataclasses.replace(part, weight=None, epochs=None, token_budget=None) for part in parts]
        self._mix = Mix(parts)
        self._streams = [
            BlockStream(rows_N, len(self._reader), seed_of_source(seed, number)) for number, rows_N in enumerate(rows)
        ]
        self.num_prompts = self._mix.num_blocks
        self.longest = int(self._reader.lengths_N.max())

    def take(self, position: int, count: int) -> list[PromptRow]:
        """The `count` prompts from `position` (from 0) on. For one thread at a time."""
        return [self._at(place) for place in range(position, position + count)]

    def _at(self, position: int) -> PromptRow:
        source, place = self._mix.place(position)
        row = self._reader.read(self._streams[source].index(place))
        return PromptRow(
            record_id=f"{row.source}/{show_example_id(row.example_id)}",
            token_ids=tuple(row.input_ids_T.tolist()),
            record={"source": row.source, "reference": row.reference, "verifier": row.verifier},
        )

"""The loss of every example at every step, as Parquet that any query engine reads.

    example-losses/part-00000001.parquet     rows of steps 1 to 25, of all ranks
                   part-00000026.parquet     ...

    SELECT example_id, max_by(loss, step) FROM 'example-losses/*.parquet' GROUP BY 1 ORDER BY 2 DESC
    SELECT source, step, sum(loss * tokens) / sum(tokens) FROM 'example-losses/*.parquet' GROUP BY 1, 2 ORDER BY 1, 2

A part is named by its first step, ends with a checkpoint, and appears whole. A run that resumes takes out the rows
after its checkpoint, so that no step stands there twice and none is missing. Rows that cannot be written (a full disk)
wait for the next checkpoint; that is said once, because a run that ends before has lost them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.distributed as dist

from finecut.trainer.parallel.process_group import Devices

FOLDER = "example-losses"  # in the stage's folder

SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.int64(), False, {"about": "as in the shards; the report shows it as 16 hex digits"}),
        pa.field("step", pa.int64(), False, {"about": "optimizer step, from 1"}),
        pa.field("loss", pa.float32(), False, {"about": "nats a trained token, before the step"}),
        pa.field("tokens", pa.int32(), False, {"about": "trained tokens"}),
        pa.field("source", pa.string(), True, {"about": "name in the job file; null where the data do not say"}),
    ]
)


class ExampleLosses:
    """Collects rows on each rank; rank 0 writes those of all."""

    def __init__(self, folder: Path, resumed_step: int, devices: Devices) -> None:
        self._folder = folder
        self._devices = devices
        self._first_step = resumed_step + 1
        self._tables: list[pa.Table] = []
        self._unwritten = SCHEMA.empty_table()  # on rank 0, of all ranks
        self._has_warned = False
        if devices.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob("*.parquet"):
                _drop_after(part, resumed_step)

    def add(
        self, step: int, example_ids_N: np.ndarray, nats_N: np.ndarray, tokens_N: np.ndarray, sources_N: np.ndarray
    ) -> None:
        """Rows of this rank, one an example with a trained token. `sources_N`: names, or None."""
        kept_N = tokens_N > 0
        columns = [
            example_ids_N[kept_N],
            np.full(int(kept_N.sum()), step, np.int64),
            (nats_N[kept_N] / tokens_N[kept_N]).astype(np.float32),
            tokens_N[kept_N].astype(np.int32),
            sources_N[kept_N].tolist(),
        ]
        self._tables.append(
            pa.Table.from_arrays(
                [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
            )
        )

    def flush(self, step: int) -> None:
        """Writes the rows since the last time, up to `step`, of all ranks. Collective."""
        own = pa.concat_tables([*self._tables, SCHEMA.empty_table()])
        if self._devices.rank % self._devices.tensor_size:
            own = SCHEMA.empty_table()  # ranks that split matrices have the same examples
        self._tables = []
        shares: list[pa.Table] = [None] * self._devices.world_size
        dist.all_gather_object(shares, own)
        if self._devices.is_main:
            self._unwritten = pa.concat_tables([self._unwritten, *shares])
            if not self._write_rows():
                return  # the part goes on
        self._first_step = step + 1

    def _write_rows(self) -> bool:
        """Whether all that waited is written now."""
        path = self._folder / f"part-{self._first_step:08}.parquet"
        try:
            if len(self._unwritten):
                _write(self._unwritten.sort_by([("step", "ascending")]), path)
        except OSError as error:
            if not self._has_warned:
                print(
                    f"warning: {path} cannot be written ({error}); its rows wait in memory", file=sys.stderr, flush=True
                )
                self._has_warned = True
            return False
        self._unwritten = SCHEMA.empty_table()
        return True


def _drop_after(part: Path, step: int) -> None:
    """Takes the rows of later steps out of a part."""
    table = pq.read_table(part)
    kept = table.filter(pc.less_equal(table["step"], step))
    if not len(kept):
        part.unlink()
    elif len(kept) < len(table):
        _write(kept, part)


def _write(rows: pa.Table, path: Path) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(rows, partial, compression="zstd")
    os.replace(partial, path)

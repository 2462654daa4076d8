"""Each source keeps to its own rows, whenever its documents come, and the manifest says which rows those are."""

from pathlib import Path

import numpy as np
import pytest

from finecut.dataprep.config import PackingConfig, PrepareConfig, SourceConfig
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.documents import Document
from finecut.dataprep.output import Output
from finecut.dataprep.shards import SplitReader
from finecut.dataprep.split import content_digest
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError

BLOCK_SIZE = 32
NAMES = ("ants", "bees", "cats")


def config(on_the_fly: bool = False, window: int = 8, weight_of_cats: float | None = None, **fields) -> PrepareConfig:
    mixing = ("weight", weight_of_cats) if weight_of_cats else None
    sources = tuple(SourceConfig(name, (), mixing=mixing if name == "cats" else None) for name in NAMES)
    packing = PackingConfig(BLOCK_SIZE, window, on_the_fly=on_the_fly)
    return PrepareConfig(sources, tokenizer="", packing=packing, **fields)


def document(source: int, number: int) -> Document:
    """Its tokens name its source."""
    length = 3 + 7 * number % 19
    ids_T: np.ndarray = np.full(length, 100 + source, np.int32)
    ids_T[0] = 1000 + number
    return Document(ids_T, np.arange(length) == length - 1)


def write(folder: Path, what: PrepareConfig, counts: tuple[int, ...]) -> artifact_pb2.Artifact:
    output = Output(what, folder, pad_token_id=0)
    for source, count in enumerate(counts):
        for number in range(count):
            found = document(source, number)
            output.add(NAMES[source], content_digest(found), found)
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size, manifest.data.packed = BLOCK_SIZE, not what.packing.on_the_fly
    manifest.data.splits.extend(split for split in output.close() if split.document_count)
    return manifest


def sources_of_rows(folder: Path, split: str, manifest: artifact_pb2.Artifact) -> list[set[int]]:
    """Sources by the tokens in each row."""
    if not manifest.data.packed:
        documents = DocumentReader(folder, split, manifest=manifest)
        return [{int(documents.read(row)[0][-1]) - 100} for row in range(len(documents))]
    reader = SplitReader(folder, split, manifest=manifest)
    tokens = (set(ids_L.tolist()) for ids_L in reader.read(range(len(reader))).input_ids_NL)
    return [{token - 100 for token in found if 100 <= token < 1000} for found in tokens]


@pytest.mark.parametrize("on_the_fly", [False, True], ids=["offline", "on the fly"])
@pytest.mark.parametrize("max_evaluation_documents", [None, 9], ids=["unbounded", "bounded"])
def test_rows_hold_one_source_and_the_ranges_say_which(
    tmp_path: Path, on_the_fly: bool, max_evaluation_documents: int | None
) -> None:
    # With a bound, the splitter gives documents of an earlier source back while a later one is read.
    what = config(on_the_fly, evaluation_fraction=0.3, max_evaluation_documents=max_evaluation_documents)
    manifest = write(tmp_path, what, (40, 50, 30))
    assert [split.name for split in manifest.data.splits] == ["train", "evaluation"]
    documents = [0, 0, 0]
    for split in manifest.data.splits:
        expected = [{part.source} for part in split.sources for _ in range(part.row_count)]
        assert sources_of_rows(tmp_path, split.name, manifest) == expected
        assert sum(part.document_count for part in split.sources) == split.document_count
        assert sum(part.token_count for part in split.sources) == split.token_count
        assert sum(part.trained_token_count for part in split.sources) == split.trained_token_count
        for part in split.sources:
            documents[part.source] += part.document_count
    assert documents == [40, 50, 30]
    train = manifest.data.splits[0]
    assert len(train.sources) == (3 if max_evaluation_documents is None else 5)


def test_a_source_that_leaves_nothing_has_no_range(tmp_path: Path) -> None:
    (train,) = write(tmp_path, config(), (4, 0, 2)).data.splits
    assert [part.source for part in train.sources] == [0, 2]


def test_a_weight_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources\[2\].weight: 0.5, but 'cats' has no document to train on"):
        write(tmp_path, config(weight_of_cats=0.5), (4, 3, 0))

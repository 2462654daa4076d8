"""Shards of documents: what is written is what is read, within the size limit, and the other kind is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep import shard_files
from finecut.dataprep.document_shards import DocumentReader, DocumentWriter
from finecut.dataprep.documents import Document, Pair
from finecut.dataprep.prompt_shards import PromptReader
from finecut.dataprep.shards import ShardWriter, SplitReader
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts


def document(length: int, token: int) -> Document:
    return Document(np.arange(token, token + length, dtype=np.int32), np.arange(length) % 3 == 1)


def write(folder: Path, lengths: list[int], block_size: int = 1000, max_bytes: int = 1 << 20) -> Path:
    writer = DocumentWriter(folder, "train", block_size, max_bytes)
    for n, length in enumerate(lengths):
        writer.add(document(length, n))
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size, manifest.data.packed = block_size, False
    manifest.data.splits.append(writer.close())
    artifacts.write(folder, manifest)
    return folder


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=80), max_bytes=st.integers(16_384, 70_000))
def test_documents_come_back_from_files_below_the_limit(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], max_bytes: int
) -> None:
    folder = write(tmp_path_factory.mktemp("shards"), lengths, max_bytes=max_bytes)
    assert all(path.stat().st_size <= max_bytes for path in folder.glob("*.arrow"))
    reader = DocumentReader(folder, "train")
    assert reader.lengths_N.tolist() == lengths
    for n in reversed(range(len(reader))):
        ids_T, mask_T = reader.read(n)
        assert ids_T.tolist() == list(range(n, n + lengths[n]))
        assert mask_T.tolist() == [t % 3 == 1 for t in range(lengths[n])]


def test_the_manifest_counts_documents_and_tokens_and_no_blocks(tmp_path: Path) -> None:
    split = artifacts.read(write(tmp_path, [5, 2])).data.splits[0]
    assert (split.block_count, split.document_count, split.token_count, split.trained_token_count) == (0, 2, 7, 3)


def test_a_block_holds_its_documents_in_the_order_given(tmp_path: Path) -> None:
    blocks = DocumentReader(write(tmp_path, [3, 2, 4], block_size=8), "train").read_blocks([[2, 0], [1]])
    assert blocks.input_ids_NL.tolist() == [[2, 3, 4, 5, 0, 1, 2, 0], [1, 2, 0, 0, 0, 0, 0, 0]]
    assert blocks.document_id_NL.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1], [0, 0] + [-1] * 6]
    assert blocks.position_id_NL.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1] + [0] * 6]
    assert np.argwhere(blocks.loss_mask_NL).tolist() == [[0, 1], [0, 5], [1, 1]]


def test_a_limit_below_one_document_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards.max_bytes: 65536 is too small for one document of 100000 tokens"):
        DocumentWriter(tmp_path, "train", 100_000, 65_536)


def test_each_reader_refuses_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds documents, which the trainer packs"):
        SplitReader(write(tmp_path / "documents", [5]), "train")
    writer = ShardWriter(tmp_path / "blocks", "train", 8, 0, 1 << 20)
    writer.add([document(5, 0)])
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size = 8  # `packed` is unset, as in artifacts of earlier versions
    manifest.data.splits.append(writer.close())
    artifacts.write(tmp_path / "blocks", manifest)
    with pytest.raises(UserError, match="holds packed blocks, not documents"):
        DocumentReader(tmp_path / "blocks", "train")
    assert len(SplitReader(tmp_path / "blocks", "train")) == 1


def test_damage_and_a_missing_document_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [5, 2])
    manifest = artifacts.read(folder)
    manifest.data.splits[0].document_count = 3
    artifacts.write(folder, manifest)
    with pytest.raises(UserError, match="has 2 documents, but its manifest says 3"):
        DocumentReader(folder, "train")
    path = folder / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00000.arrow"):
        DocumentReader(folder, "train", verify=False)


def test_an_index_past_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="document 2 of 2"):
        DocumentReader(write(tmp_path, [5, 2]), "train").read(2)


def test_pairs_stay_together_in_blocks_with_id_and_margin(tmp_path: Path) -> None:
    writer = DocumentWriter(tmp_path, "train", 8, 1 << 20, pairs=True)
    for token, (chosen, rejected, margin) in enumerate([(2, 1, None), (3, 2, 0.5)], start=1):
        length = chosen + rejected
        ids_T = np.full(length, token, np.int32)
        parts = Pair(chosen, margin)
        writer.add(Document(ids_T, np.zeros(length, bool), example_id=token, pair=parts))
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size, manifest.data.packed = 8, False
    manifest.data.splits.append(writer.close())
    artifacts.write(tmp_path, manifest)
    reader = DocumentReader(tmp_path, "train")
    assert (len(reader), manifest.data.splits[0].document_count) == (2, 4)
    assert reader.lengths_N.tolist() == [3, 5]
    assert reader.attention_work_N.tolist() == [2**2 + 1, 3**2 + 2**2]
    blocks = reader.read_blocks([[1, 0], [0]])
    assert blocks.document_id_NL.tolist() == [[0, 0, 0, 1, 1, 2, 2, 3], [0, 0, 1] + [-1] * 5]
    assert blocks.position_id_NL.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0], [0, 1] + [0] * 6]
    assert blocks.example_id_ND.tolist() == [[2, 2, 1, 1], [1, 1, 0, 0]]
    assert str(blocks.margin_NP.tolist()) == "[[0.5, nan], [nan, nan]]"


def test_examples_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, [5, 2])
    with pytest.raises(UserError, match="holds documents, and prompts are needed; prepare them from records of that"):
        PromptReader(folder, "train")
    manifest = artifacts.read(folder)
    shard_files.check_kind(folder, manifest, artifact_pb2.DataArtifact.DOCUMENTS)  # as earlier versions left it unset
    manifest.data.kind = artifact_pb2.DataArtifact.PAIRS
    with pytest.raises(UserError, match="holds preference pairs, and documents are needed"):
        shard_files.check_kind(folder, manifest, artifact_pb2.DataArtifact.DOCUMENTS)

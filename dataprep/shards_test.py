"""Shards: what is written is what is read, within the size limit, and damage is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep import shards
from finecut.dataprep.documents import Document, Pair, example_id, show_example_id
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts

PAD = 7


def document(*token_ids: int, trained: int = 1) -> Document:
    mask_T: np.ndarray = np.zeros(len(token_ids), bool)
    if len(token_ids) > 1:
        mask_T[-trained:] = True
    return Document(np.array(token_ids, np.int32), mask_T)


def write(folder: Path, blocks: list[list[Document]], block_size: int = 8, max_bytes: int = 1 << 20) -> Path:
    """An artifact with one split, "train"."""
    writer = shards.ShardWriter(folder, "train", block_size, PAD, max_bytes)
    for block in blocks:
        writer.add(block)
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size = block_size
    manifest.data.splits.append(writer.close())
    artifacts.write(folder, manifest)
    return folder


def test_a_block_comes_back_with_its_documents_apart(tmp_path: Path) -> None:
    folder = write(tmp_path, [[document(11, 12, 13), document(21, 22, trained=1)], [document(*range(8), trained=3)]])
    reader = shards.SplitReader(folder, "train")
    assert (len(reader), reader.block_size) == (2, 8)
    blocks = reader.read([1, 0])
    assert blocks.input_ids_NL.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 21, 22, PAD, PAD, PAD]]
    assert np.argwhere(blocks.loss_mask_NL).tolist() == [[0, 5], [0, 6], [0, 7], [1, 2], [1, 4]]
    assert blocks.document_id_NL.tolist() == [[0] * 8, [0, 0, 0, 1, 1, -1, -1, -1]]
    assert blocks.position_id_NL.tolist() == [list(range(8)), [0, 1, 2, 0, 1, 0, 0, 0]]
    dtypes = [np.int32, bool, np.int32, np.int32, np.int64, np.float32]
    assert [array.dtype for array in vars(blocks).values()] == dtypes


def test_the_manifest_counts_documents_and_tokens(tmp_path: Path) -> None:
    folder = write(tmp_path, [[document(1, 2, 3, trained=2), document(4, 5)]])
    split = artifacts.read(folder).data.splits[0]
    assert (split.block_count, split.document_count, split.token_count, split.trained_token_count) == (1, 2, 5, 3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), block_size=st.sampled_from([16, 100, 1000]), max_bytes=st.integers(16_384, 70_000))
def test_files_stay_below_their_limit_and_order_is_kept(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, block_size: int, max_bytes: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, block_size), min_size=1, max_size=80))
    folder = write(
        tmp_path_factory.mktemp("shards"),
        [[document(*[n] * length)] for n, length in enumerate(lengths)],
        block_size,
        max_bytes,
    )
    assert all(path.stat().st_size <= max_bytes for path in folder.glob("*.arrow"))
    reader = shards.SplitReader(folder, "train")
    blocks = reader.read(range(len(reader)))
    assert blocks.input_ids_NL[:, 0].tolist() == list(range(len(lengths)))
    assert (blocks.document_id_NL == 0).sum(axis=1).tolist() == lengths


def test_many_shards_are_cut_by_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path, [[document(*[n] * 1000)] for n in range(60)], block_size=1000, max_bytes=65_536)
    assert len(list(folder.glob("train-*.arrow"))) > 3
    assert shards.SplitReader(folder, "train").read([59]).input_ids_NL[0, 0] == 59


def test_a_limit_below_one_block_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards.max_bytes: 65536 is too small for one block of 100000 tokens"):
        shards.ShardWriter(tmp_path, "train", 100_000, PAD, 65_536)


def test_a_killed_writer_leaves_nothing_to_read(tmp_path: Path) -> None:
    writer = shards.ShardWriter(tmp_path, "train", 1000, PAD, 65_536)
    for n in range(40):
        writer.add([document(*[n] * 1000)])
    with pytest.raises(UserError, match=r"manifest.json is missing"):
        shards.SplitReader(tmp_path, "train")


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_shard_is_refused(tmp_path: Path, verify: bool) -> None:
    path = write(tmp_path, [[document(1, 2, 3)]]) / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00000.arrow"):
        shards.SplitReader(tmp_path, "train", verify=verify)


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [[document(1, 2, 3)]]) / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000.arrow"):
        shards.SplitReader(tmp_path, "train")


def test_attention_work_is_the_sum_of_squared_document_lengths(tmp_path: Path) -> None:
    folder = write(tmp_path, [[document(*[n] * 900), document(*[n] * (n + 1))] for n in range(60)], 1000, 65_536)
    assert len(list(folder.glob("train-*.arrow"))) > 3
    reader = shards.SplitReader(folder, "train")
    assert reader.attention_work([59, 0, 7]).tolist() == [900**2 + 60**2, 900**2 + 1, 900**2 + 64]


def test_an_absent_split_is_named_with_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'evaluation', only train; set data_prep.evaluation.fraction"):
        shards.SplitReader(write(tmp_path, [[document(1, 2)]]), "evaluation")


def test_an_index_past_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="block 1 of 1"):
        shards.SplitReader(write(tmp_path, [[document(1, 2)]]), "train").read([1])


def pair(token: int, chosen: int, rejected: int, margin: float | None = None) -> Document:
    """Two documents of these lengths, made of this token; the last token of each is trained."""
    length = chosen + rejected
    mask_T = np.isin(np.arange(length), [chosen - 1, length - 1])
    return Document(np.full(length, token, np.int32), mask_T, example_id=-token, pair=Pair(chosen, margin))


def test_the_documents_of_a_pair_follow_each_other_with_id_and_margin(tmp_path: Path) -> None:
    writer = shards.ShardWriter(tmp_path, "train", 8, PAD, 1 << 20, pairs=True)
    writer.add([pair(1, 2, 2), pair(2, 2, 2, margin=1.5)])
    writer.add([pair(3, 3, 2)])
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size = 8
    manifest.data.splits.append(writer.close())
    artifacts.write(tmp_path, manifest)
    assert (manifest.data.splits[0].document_count, manifest.data.splits[0].trained_token_count) == (6, 6)
    blocks = shards.SplitReader(tmp_path, "train").read([0, 1])
    assert blocks.document_id_NL.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, -1, -1, -1]]
    assert blocks.position_id_NL.tolist() == [[0, 1] * 4, [0, 1, 2, 0, 1, 0, 0, 0]]
    assert blocks.example_id_ND.tolist() == [[-1, -1, -2, -2], [-3, -3, 0, 0]]
    assert str(blocks.margin_NP.tolist()) == "[[nan, 1.5], [nan, nan]]"


def test_documents_keep_their_example_ids(tmp_path: Path) -> None:
    first, second = replace(document(1, 2), example_id=2**63 - 1), replace(document(3, 4), example_id=-5)
    blocks = shards.SplitReader(write(tmp_path, [[first, second], [second]]), "train").read([1, 0])
    assert blocks.example_id_ND.tolist() == [[-5, 0], [2**63 - 1, -5]]
    assert blocks.margin_NP.shape == (2, 0)


def test_an_example_id_depends_on_tokens_and_where_a_pair_is_parted() -> None:
    ids = {example_id(found) for found in (document(1, 2, 3), document(1, 2, 4), pair(1, 2, 2), pair(1, 3, 1))}
    assert len(ids) == 4
    assert example_id(document(1, 2, 3)) == example_id(document(1, 2, 3, trained=2))
    assert show_example_id(-1) == "f" * 16 and show_example_id(10) == "000000000000000a"

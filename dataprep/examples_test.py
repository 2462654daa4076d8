"""An example id leads back to what it names."""

from pathlib import Path

import numpy as np
import pytest

from finecut.dataprep import tokenization
from finecut.dataprep.documents import Document, Pair, example_id, show_example_id
from finecut.dataprep.examples import find
from finecut.dataprep.shards import ShardWriter, SplitReader
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts


@pytest.fixture
def texts() -> list[str]:
    return ["How are you?", "The sea and the mountains", "A robot"]


@pytest.fixture
def folder(tmp_path: Path, texts: list[str]) -> Path:
    """A block of pairs: the first half of each text, and then all of it with its last token trained."""
    tokenizer = tokenization.load(write_tiny_tokenizer(tmp_path / "tokenizer"))
    writer = ShardWriter(tmp_path, "train", 64, 0, 1 << 20, pairs=True)
    for text in texts:
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        two = np.concatenate([ids[: len(ids) // 2], ids])
        mask_T = np.arange(len(two)) == len(two) - 1
        pair = Document(two, mask_T, pair=Pair(len(ids) // 2))
        writer.add([Document(two, mask_T, example_id=example_id(pair), pair=pair.pair)])
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size, manifest.data.kind = 64, artifact_pb2.DataArtifact.PAIRS
    manifest.data.splits.append(writer.close())
    artifacts.write(tmp_path, manifest)
    return tmp_path


def ids_of(folder: Path) -> list[str]:
    return [show_example_id(int(row[0])) for row in SplitReader(folder, "train").read([0, 1, 2]).example_id_ND]


def test_both_documents_of_a_pair_are_shown_with_what_is_trained(folder: Path, texts: list[str]) -> None:
    for number, (example, text) in enumerate(zip(ids_of(folder), texts, strict=True)):
        first, second = find(folder, example)
        assert first.startswith(f"train block {number}, document 0:\n") and "⟦" not in first
        where, said = second.split("\n", 1)
        assert where == f"train block {number}, document 1:"
        assert said.endswith("⟧") and said.replace("⟦", "").replace("⟧", "") == text


def test_an_unknown_id_finds_nothing_and_a_wrong_one_is_refused(folder: Path) -> None:
    assert not list(find(folder, "0123456789abcdef"))
    with pytest.raises(UserError, match="example id 'xyz': it has 16 hexadecimal digits"):
        list(find(folder, "xyz"))

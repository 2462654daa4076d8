"""The stream of prompts: every prompt once an epoch, the same from any position on, mixed as declared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep.config import PackingConfig, PrepareConfig, PromptConfig, SourceConfig
from finecut.dataprep.documents import Document, Task, example_id, parse_example_id
from finecut.dataprep.output import Output
from finecut.dataprep.split import content_digest
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts
from finecut.trainer.data.prompts import PromptRow, PromptStream

NUM_PROMPTS = {"ants": 30, "bees": 10}


def write(folder: Path, mixing: dict[str, tuple[str, float]] | None = None, held_out: float = 0.0) -> Path:
    """Prompts whose reference is the sum of their tokens; every second one names a verifier."""
    mixing = mixing or {}
    record = PromptConfig(reference_field="answer", verifier_field="verifier")
    sources = tuple(SourceConfig(name, (), record=record, mixing=mixing.get(name)) for name in NUM_PROMPTS)
    config = PrepareConfig(sources, tokenizer="", packing=PackingConfig(64, 16), evaluation_fraction=held_out)
    output = Output(config, folder, pad_token_id=0)
    random = np.random.default_rng(0)
    for name, count in NUM_PROMPTS.items():
        for number in range(count):
            ids_T = random.integers(1, 500, 8).astype(np.int32)
            task = Task(name, str(ids_T.sum()), "numeric" if number % 2 else None)
            document = Document(ids_T, np.zeros(8, bool), task=task)
            document = Document(ids_T, np.zeros(8, bool), task=task, example_id=example_id(document))
            output.add(name, content_digest(document), document)
    data = artifact_pb2.DataArtifact(kind=artifact_pb2.DataArtifact.PROMPTS, packed=False, block_size=64)
    data.splits.extend(output.close())
    for name in NUM_PROMPTS:
        data.sources.add(name=name, **dict([mixing[name]] if name in mixing else []))
    artifacts.write(folder, artifact_pb2.Artifact(data=data))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("prompts"))


def ids(rows: list[PromptRow]) -> list[str]:
    return [row.record_id for row in rows]


def test_a_row_has_its_tokens_its_reference_and_a_findable_id(plain: Path) -> None:
    rows = PromptStream(plain, "train", seed=0).take(0, 40)
    for row in rows:
        assert row.record["reference"] == str(sum(row.token_ids)) and len(row.token_ids) == 8
        source, _, example = row.record_id.partition("/")
        assert source == row.record["source"]
        assert parse_example_id(example) == example_id(Document(np.array(row.token_ids), np.zeros(8, bool)))
    assert Counter(row.record["verifier"] for row in rows) == {"numeric": 20, None: 20}


def test_every_prompt_comes_once_an_epoch_in_another_order(plain: Path) -> None:
    stream = PromptStream(plain, "train", seed=0)
    first, second = ids(stream.take(0, 40)), ids(stream.take(40, 40))
    assert stream.num_prompts == 40 and stream.longest == 8
    assert len(set(first)) == 40 and sorted(first) == sorted(second) and first != second
    assert first != ids(PromptStream(plain, "train", seed=1).take(0, 40))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(position=st.integers(0, 200), count=st.integers(0, 50), cut=st.integers(0, 50))
def test_the_stream_goes_on_exactly_where_it_was_left(plain: Path, position: int, count: int, cut: int) -> None:
    cut = min(cut, count)
    whole = PromptStream(plain, "train", seed=5).take(position, count)
    parts = PromptStream(plain, "train", seed=5)
    assert parts.take(position + cut, count - cut) == whole[cut:]
    assert parts.take(position, cut) == whole[:cut]


def test_sources_are_mixed_by_weight_in_training_and_not_where_they_are_held_out(tmp_path: Path) -> None:
    folder = write(tmp_path, {"ants": ("weight", 1.0), "bees": ("weight", 3.0)}, held_out=0.4)
    taken = Counter(row.record["source"] for row in PromptStream(folder, "train", seed=0).take(0, 400))
    assert abs(taken["bees"] - 300) <= 1
    held_out = PromptStream(folder, "evaluation", seed=0)
    assert len(set(ids(held_out.take(0, held_out.num_prompts)))) == held_out.num_prompts


def test_what_holds_no_prompts_is_refused(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(UserError, match="evaluation"):
        PromptStream(plain, "evaluation", seed=0)
    artifacts.write(tmp_path, artifact_pb2.Artifact(data=artifact_pb2.DataArtifact(block_size=32)))
    with pytest.raises(UserError):
        PromptStream(tmp_path, "train", seed=0)

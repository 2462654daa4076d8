"""Pairs, prompts, event sequences and near-duplicates through the whole stage: from files to what the trainer reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from finecut.dataprep import tokenization
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.documents import digest_of_ids
from finecut.dataprep.prompt_shards import PromptReader
from finecut.dataprep.shards import Blocks, SplitReader
from finecut.dataprep.stage import run_stage
from finecut.dataprep.testing import SMOLLM2_TEMPLATE, write_tiny_tokenizer
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, resolve

PAIRS, PROMPTS = artifact_pb2.DataArtifact.PAIRS, artifact_pb2.DataArtifact.PROMPTS
EVENTS = "event_sequence { semantic_id_count: 100 }"


class Data:
    """A data_prep stage on one file of records."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._tokenizer = write_tiny_tokenizer(folder / "tokenizer", chat_template=SMOLLM2_TEMPLATE)
        self.tokenizer = tokenization.load(self._tokenizer)
        (self._tokenizer / "config.json").write_text('{"model_type": "llama"}')
        self.artifact = folder / "finecut-runs/kinds/stages/prepare/artifact"

    def prepare(self, records: list[Any], kind: str, settings: str = "") -> artifact_pb2.DataArtifact:
        (self._folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        job = text_format.Parse(
            f'name: "kinds" stages {{ name: "prepare" data_prep {{ sources {{ paths: "a.jsonl" {kind} }} '
            f'tokenization {{ tokenizer: "{self._tokenizer}" }} packing {{ block_size: 256 }} }} }}',
            job_pb2.JobConfig(),
        )
        text_format.Merge(settings, job.stages[0].data_prep)
        return run_stage(resolve(job, base_dir=self._folder), "prepare").data

    def blocks(self, split: str = "train") -> Blocks:
        reader = SplitReader(self.artifact, split)
        return reader.read(range(len(reader)))

    def report(self) -> str:
        return (self.artifact / "report.html").read_text()


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def pair(number: int, better: int = 1, repeat: int = 1) -> dict[str, Any]:
    chosen, rejected = (f"{word} {better} " * repeat for word in ("Fine", "Bad"))
    return {"prompt": f"How is {number}?", "chosen": chosen, "rejected": rejected, "margin": number / 4}


def pairs_in(data: Data, blocks: Blocks) -> list[tuple[str, str, float]]:
    """What is trained of each pair, and its margin."""
    found = []
    for n in range(len(blocks.input_ids_NL)):
        for k in range((blocks.document_id_NL[n].max() + 1) // 2):
            in_pair = [blocks.document_id_NL[n] == number for number in (2 * k, 2 * k + 1)]
            chosen, rejected = (
                data.tokenizer.decode(blocks.input_ids_NL[n][inside & blocks.loss_mask_NL[n]]) for inside in in_pair
            )
            assert blocks.example_id_ND[n, 2 * k] == blocks.example_id_ND[n, 2 * k + 1] != 0
            found.append((chosen, rejected, float(blocks.margin_NP[n, k])))
    return sorted(found, key=lambda item: item[2])


@pytest.mark.parametrize("mode", ["OFFLINE", "ON_THE_FLY", "NONE"])
def test_pairs_stay_whole_with_their_margins(data: Data, mode: str) -> None:
    artifact = data.prepare(
        [pair(number) for number in range(30)],
        'preference { margin_field: "margin" }',
        f"packing {{ mode: {mode} window_documents: 8 }}",
    )
    (train,) = artifact.splits
    assert (artifact.kind, train.document_count) == (PAIRS, 60)
    if mode == "ON_THE_FLY":
        reader = DocumentReader(data.artifact, "train")
        blocks = reader.read_blocks([[n] for n in range(len(reader))])
    else:
        blocks = data.blocks()
    expected = [("Fine 1 <|im_end|>", "Bad 1 <|im_end|>", number / 4) for number in range(30)]
    assert pairs_in(data, blocks) == expected
    assert "prompt with the chosen answer" in data.report() and "prompt with the rejected answer" in data.report()


def test_pairs_of_one_prompt_stand_on_one_side(data: Data) -> None:
    records = [pair(number, better) for number in range(20) for better in range(3)]
    artifact = data.prepare(records, "preference {}", "evaluation { fraction: 0.3 }")
    assert [split.document_count % 6 for split in artifact.splits] == [0, 0]

    def prompts(split: str) -> set[bytes]:
        blocks = data.blocks(split)
        rows = [(n, d) for n in range(len(blocks.input_ids_NL)) for d in range(blocks.document_id_NL[n].max() + 1)]
        inside = [blocks.document_id_NL[n] == d for n, d in rows]
        masks = [blocks.loss_mask_NL[n] for n, _ in rows]
        return {
            digest_of_ids(blocks.input_ids_NL[n][here][: mask[here].argmax()])
            for (n, _), here, mask in zip(rows, inside, masks, strict=True)
        }

    train, evaluation = prompts("train"), prompts("evaluation")
    assert len(train) + len(evaluation) == 20 and not train & evaluation


def test_long_pairs_are_cut_within_their_budget_and_counted(data: Data) -> None:
    records = [pair(number) for number in range(9)] + [pair(9, repeat=60)]
    settings = "packing { long_documents: TRUNCATE } error_budget { max_truncated_fraction: 0.1 }"
    with pytest.raises(UserError, match=r"a.jsonl:10: [\d,]+ \+ [\d,]+ tokens of the pair do not fit"):
        data.prepare(records, "preference {}")
    (train,) = data.prepare(records, "preference {}", settings).splits
    assert (train.document_count, train.truncated_document_count) == (20, 2)


def test_bad_pairs_are_reported_with_their_lines(data: Data) -> None:
    records = [pair(0), {**pair(1), "rejected": pair(1)["chosen"]}, {**pair(2), "chosen": ""}, {"prompt": "x"}]
    with pytest.raises(UserError) as caught:
        data.prepare(records, "preference {}")
    for line in (":2: chosen and rejected are equal", ":3: chosen: the answer is empty", ":4: no field 'chosen'"):
        assert f"a.jsonl{line}" in str(caught.value)


def test_prompts_are_rows_with_what_judges_their_answers(data: Data) -> None:
    records = [{"prompt": f"What is {n} x 2?", "answer": 2 * n, "verifier": "math"} for n in range(40)]
    kind = 'prompt { reference_field: "answer" verifier_field: "verifier" }'
    artifact = data.prepare(records, kind, "evaluation { fraction: 0.2 }")
    assert (artifact.kind, artifact.packed) == (PROMPTS, False)
    found = {}
    for split in artifact.splits:
        reader = PromptReader(data.artifact, split.name)
        assert len(reader) == split.document_count and split.trained_token_count == 0
        assert reader.lengths_N.sum() == split.token_count
        for row in reader:
            text = data.tokenizer.decode(row.input_ids_T)
            assert text.endswith("x 2?<|im_end|>\n<|im_start|>assistant\n")
            assert (row.source, row.verifier) == ("a.jsonl", "math")
            found[row.example_id] = row.reference
    assert sorted(found.values(), key=lambda text: int(text or "")) == [str(2 * n) for n in range(40)]
    assert "Prompts of up to 256 tokens" in data.report() and "0 trained" in data.report()
    with pytest.raises(IndexError, match="prompt 999 of"):
        PromptReader(data.artifact, "train").read(999)


def test_long_prompts_are_refused_and_not_cut(data: Data) -> None:
    with pytest.raises(UserError, match=r"a.jsonl:1: the prompt has [\d,]+ tokens, more than packing.block_size, 256"):
        data.prepare([{"prompt": "why? " * 300}], "prompt {}")


def test_event_sequences_follow_the_text_vocabulary(data: Data) -> None:
    records = [{"ids": [n, n + 1, 99]} for n in range(40)]
    artifact = data.prepare(records, EVENTS)
    assert (artifact.vocabulary_size, artifact.semantic_id_count) == (612, 100)
    blocks = data.blocks()
    ids = blocks.input_ids_NL[blocks.document_id_NL >= 0]
    assert sorted(ids.tolist()) == sorted(512 + found for record in records for found in record["ids"])
    assert artifact.splits[0].trained_token_count == 80
    assert "⟨611⟩" in data.report()


def test_event_sequences_need_no_chat_template(data: Data) -> None:
    (data.artifact.parents[4] / "tokenizer/chat_template.jinja").unlink()
    assert data.prepare([{"ids": [1, 2]}], EVENTS).splits[0].document_count == 1


def test_near_duplicates_are_left_out_and_counted(data: Data) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(map(str, random.integers(0, 99, 60))) for _ in range(10)]
    records = [{"text": text} for text in [*texts, texts[3] + " more", texts[5].replace(" ", ", ")]]
    settings = "filter { deduplication { near_similarity: 0.8 } } packing { block_size: 512 }"
    artifact = data.prepare(records, "text {}", settings)
    assert dict(artifact.sources[0].filtered_record_counts) == {"near_duplicates": 2}
    assert artifact.splits[0].document_count == 10


def test_an_example_is_the_same_in_every_preparation(data: Data) -> None:
    records = [pair(number) for number in range(10)]
    data.prepare(records, "preference {}")
    first = set(data.blocks().example_id_ND.ravel().tolist()) - {0}
    assert len(first) == 10
    data.artifact.parents[2].rename(data.artifact.parents[2].with_name("before"))
    data.prepare(records[::-1], "preference {}", "seed: 7 packing { block_size: 512 }")
    assert set(data.blocks().example_id_ND.ravel().tolist()) - {0} == first

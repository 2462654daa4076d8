"""The last look: wrong data never becomes an artifact, and an artifact can be looked at again."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from finecut.dataprep import masking, review, shards, tokenization
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.documents import Document
from finecut.dataprep.records import BadRecord
from finecut.dataprep.stage import find, run_stage
from finecut.dataprep.testing import MARKED_TEMPLATE, SMOLLM2_TEMPLATE, write_tiny_tokenizer
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, resolve
from finecut.proto.run import RunFolder, artifacts

CHAT = '{"messages": [{"role": "user", "content": "What is %d?"}, {"role": "assistant", "content": "It is %d."}]}\n'


@pytest.fixture(params=["OFFLINE", "ON_THE_FLY"])
def job(tmp_path: Path, request: pytest.FixtureRequest) -> job_pb2.JobConfig:
    """A stage with either kind of shard."""
    folder = write_tiny_tokenizer(tmp_path / "tokenizer", chat_template=SMOLLM2_TEMPLATE)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "chats.jsonl").write_text("".join(CHAT % (number, number) for number in range(30)))
    config = text_format.Parse(
        f'name: "chats" stages {{ name: "prepare" data_prep {{ sources {{ paths: "chats.jsonl" }} '
        f'tokenization {{ tokenizer: "{folder}" }} packing {{ block_size: 256 mode: {request.param} }} '
        "evaluation { fraction: 0.2 } } }",
        job_pb2.JobConfig(),
    )
    return resolve(config, base_dir=tmp_path)


def artifact_of(job: job_pb2.JobConfig) -> Path:
    return RunFolder.of(job).artifact("prepare")


def lint(job: job_pb2.JobConfig) -> review.Findings:
    folder = artifact_of(job)
    return review.lint(folder, artifacts.read(folder), find(job, "prepare"))


def without_end(document: Document) -> Document:
    mask_T = document.loss_mask_T.copy()
    mask_T[np.flatnonzero(mask_T)[-1]] = False
    return replace(document, loss_mask_T=mask_T)


def with_everything(document: Document) -> Document:
    return replace(document, loss_mask_T=np.arange(len(document)) > 0)


def with_a_foreign_token(document: Document) -> Document:
    ids_T = document.input_ids_T.copy()
    ids_T[5] = 512
    return replace(document, input_ids_T=ids_T)


@pytest.mark.parametrize(
    ("harm", "rule", "reason"),
    [
        (without_end, "end of turn", "the trained text ends without a special token"),
        (with_everything, "everything trained", "every token is trained, the prompt too"),
        (with_a_foreign_token, "vocabulary", "the token is not in the tokenizer's vocabulary"),
    ],
)
def test_a_mask_gone_wrong_stops_the_stage_and_leaves_nothing(
    job: job_pb2.JobConfig,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Document], Document],
    rule: str,
    reason: str,
) -> None:
    honest = masking.Masker.documents

    def harmful(self: masking.Masker, conversations: list[Conversation]) -> list[tuple[Document, ...] | BadRecord]:
        results = honest(self, conversations)
        return [result if isinstance(result, BadRecord) else tuple(map(harm, result)) for result in results]

    monkeypatch.setattr(masking.Masker, "documents", harmful)
    with pytest.raises(UserError) as caught:
        run_stage(job, "prepare")
    lines = str(caught.value).splitlines()
    assert re.match(rf"the prepared data must not be trained on: \d+ findings \({rule} 30[,)]", lines[0])
    assert reason in lines[1] and "evaluation block 0, document 0: " in lines[1]
    assert len(lines) == 22 and re.match(r"  \.\.\. and \d+ more", lines[-1])
    assert not artifact_of(job).exists()


def test_the_report_is_part_of_the_artifact(job: job_pb2.JobConfig) -> None:
    artifact = run_stage(job, "prepare")
    assert review.REPORT in [file.path for file in artifact.files]
    page = (artifact_of(job) / review.REPORT).read_text(encoding="utf-8")
    assert "<title>Prepared data: chats, prepare</title>" in page
    assert "<|im_end|>" not in page and "&lt;|im_end|&gt;" in page


def test_a_finished_artifact_is_found_clean(job: job_pb2.JobConfig) -> None:
    artifact = run_stage(job, "prepare")
    findings = lint(job)
    assert len(findings) == 0
    table = review.summary(findings, artifact.data)
    assert "train: " in table and "evaluation: " in table and "found" not in table
    assert table.count(" ok") == len(review.RULE_NAMES)


@pytest.mark.parametrize("job", ["OFFLINE"], indirect=True)
def test_training_data_that_repeats_the_evaluation_is_found(job: job_pb2.JobConfig) -> None:
    run_stage(job, "prepare")
    folder = artifact_of(job)
    manifest = artifacts.read(folder)
    held_out = shards.SplitReader(folder, "evaluation").read([0])
    first_L = held_out.document_id_NL[0] == 0
    leaked = Document(held_out.input_ids_NL[0][first_L], held_out.loss_mask_NL[0][first_L])
    writer = shards.ShardWriter(folder, "train", 256, 0, 1 << 20)
    writer.add([leaked])
    train = writer.close()
    manifest.data.splits[0].CopyFrom(train)
    artifacts.write(folder, manifest)
    findings = lint(job)
    assert findings.count_by_rule == {"duplicates across splits": 1}
    assert "duplicates across splits    1 found" in review.summary(findings, manifest.data)


def test_another_tokenizer_than_the_data_s_is_refused(job: job_pb2.JobConfig) -> None:
    run_stage(job, "prepare")
    tokenizer = Path(find(job, "prepare").tokenization.tokenizer)
    (tokenizer / "chat_template.jinja").write_text(MARKED_TEMPLATE)
    with pytest.raises(UserError, match="was prepared with another tokenizer or chat template"):
        lint(job)


def test_expectations_follow_the_stage(job: job_pb2.JobConfig) -> None:
    stage = find(job, "prepare")
    tokenizer = tokenization.load(stage.tokenization.tokenizer)
    data = artifact_pb2.DataArtifact(pad_token_id=0)
    expected = review.Expectations.of(stage, data, tokenizer)
    assert (expected.vocabulary_size, expected.eos_token_id, expected.special_ids) == (512, 2, (0, 1, 2, 3, 4))
    assert not (expected.may_be_cut or expected.may_train_all or expected.may_train_none)
    stage.packing.long_documents = stage.packing.TRUNCATE
    assert review.Expectations.of(stage, data, tokenizer).may_be_cut

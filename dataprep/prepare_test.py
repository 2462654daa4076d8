"""The stage as a whole: from files to an artifact, or to one error that says everything and leaves nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from google.protobuf import text_format

from finecut.dataprep import shards, split, tokenization
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.documents import Document
from finecut.dataprep.stage import run_stage
from finecut.dataprep.testing import SMOLLM2_TEMPLATE, write_tiny_tokenizer
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, resolve
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), chat_template=SMOLLM2_TEMPLATE)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


class Job:
    """A job with one data_prep stage on files of a folder."""

    def __init__(self, folder: Path, tokenizer_folder: Path):
        self.folder = folder
        self._tokenizer = tokenizer_folder
        self.text = ""
        self.template = ""

    def write(self, lines: list[Any], name: str = "chats.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    def config(self) -> job_pb2.JobConfig:
        job = text_format.Parse(
            f'name: "chats" stages {{ name: "prepare" data_prep {{ sources {{ paths: "*.jsonl" }} '
            f'tokenization {{ tokenizer: "{self._tokenizer}" }} packing {{ block_size: 256 }} }} }}',
            job_pb2.JobConfig(),
        )
        text_format.Merge(self.text, job.stages[0].data_prep)
        if self.template:
            (self.folder / "template.jinja").write_text(self.template)
            job.stages[0].data_prep.tokenization.chat_template_file = "template.jinja"
        return resolve(job, base_dir=self.folder)

    def run(self) -> artifact_pb2.Artifact:
        return run_stage(self.config(), "prepare")

    @property
    def stage(self) -> RunFolder:
        return RunFolder.of(self.config())

    @property
    def artifact(self) -> Path:
        return self.folder / "finecut-runs/chats/stages/prepare/artifact"

    def messages(self) -> list[str]:
        events, _ = follow(self.stage.events("prepare"))
        return [event.message for event in events if event.message]


@pytest.fixture
def job(tmp_path: Path, tokenizer_folder: Path) -> Job:
    return Job(tmp_path, tokenizer_folder)


def chat(number: int, repeat: int = 1) -> dict[str, Any]:
    answer = " ".join([f"Answer {number} it is."] * repeat)
    return {"messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": answer}]}


def test_conversations_become_packed_blocks_with_a_manifest(job: Job, tokenizer_folder: Path) -> None:
    job.write([chat(number) for number in range(100)])
    job.text = "evaluation { fraction: 0.2 }"
    artifact = job.run()
    assert artifact == artifacts.read(job.artifact, verify=True)
    assert (artifact.job, artifact.stage) == ("chats", "prepare")
    tokenizer = tokenization.load(tokenizer_folder)
    assert artifact.fingerprints.tokenizer == tokenization.fingerprint(tokenizer)
    assert all(len(value) == 64 for value in (artifact.fingerprints.config, artifact.fingerprints.data))
    data = artifact.data
    assert (data.block_size, data.vocabulary_size, data.pad_token_id) == (256, 512, 0)
    assert [(source.name, source.record_count, source.bad_record_count) for source in data.sources] == [
        ("*.jsonl", 100, 0)
    ]
    train, evaluation = data.splits
    assert (train.name, evaluation.name) == ("train", "evaluation")
    assert train.document_count + evaluation.document_count == 100
    assert 8 <= evaluation.document_count <= 32
    assert train.token_count / (train.block_count * 256) > 0.8


def test_every_answer_is_a_target_once_and_in_its_own_document(job: Job, tokenizer_folder: Path) -> None:
    job.write([chat(number) for number in range(40)])
    job.run()
    tokenizer = tokenization.load(tokenizer_folder)
    reader = shards.SplitReader(job.artifact, "train")
    blocks = reader.read(range(len(reader)))
    answers = []
    for n in range(len(reader)):
        for document in range(blocks.document_id_NL[n].max() + 1):
            inside_L = blocks.document_id_NL[n] == document
            assert blocks.position_id_NL[n][inside_L].tolist() == list(range(inside_L.sum()))
            answers.append(tokenizer.decode(blocks.input_ids_NL[n][inside_L & blocks.loss_mask_NL[n]]))
    assert sorted(answers) == sorted(f"Answer {number} it is.<|im_end|>" for number in range(40))
    assert not blocks.loss_mask_NL[blocks.document_id_NL < 0].any()
    assert not blocks.loss_mask_NL[blocks.position_id_NL == 0].any()


def test_equal_jobs_give_equal_bytes_and_seeds_matter(job: Job) -> None:
    job.write([chat(number) for number in range(60)])
    first = [file.sha256 for file in job.run().files]
    job.folder.joinpath("finecut-runs").rename(job.folder / "first")
    assert [file.sha256 for file in job.run().files] == first
    job.folder.joinpath("finecut-runs").rename(job.folder / "second")
    job.text = "seed: 1"
    assert [file.sha256 for file in job.run().files] != first


def test_progress_and_a_summary_are_logged(job: Job) -> None:
    job.write([chat(number) for number in range(600)])
    job.run()
    events, _ = follow(job.stage.events("prepare"))
    steps = [event.step for event in events if event.HasField("step")]
    assert [(step.step, step.total_steps) for step in steps] == [(512, 600), (600, 600)]
    assert steps[-1].values["documents"] == 600
    (summary,) = job.messages()
    assert summary.startswith("train: 600 documents, ") and "% trained" in summary and "% filled" in summary


def test_all_bad_records_are_reported_at_once_and_nothing_is_left(job: Job) -> None:
    empty = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}
    path = job.write([chat(0), '{"messages": [', empty, chat(1), "[]"])
    with pytest.raises(UserError) as caught:
        job.run()
    text = str(caught.value)
    assert "max_records: 3 bad records, 0 allowed" in text
    assert f"{path}:2: not JSON" in text
    assert f"{path}:3: messages[1].content: the assistant message is empty" in text
    assert f"{path}:5: a list where an object" in text
    assert not job.artifact.exists()


def test_a_long_list_of_bad_records_is_cut_with_a_count(job: Job) -> None:
    job.write(["oops"] * 50)
    with pytest.raises(UserError, match=r"50 bad records(.|\n)*chats.jsonl:20: (.|\n)*\.\.\. and 30 more$"):
        job.run()


def test_bad_records_within_the_budget_are_left_out_and_reported(job: Job) -> None:
    path = job.write([chat(0), "oops", chat(1)])
    job.text = "error_budget { max_records: 1 }"
    source = job.run().data.sources[0]
    assert (source.record_count, source.bad_record_count) == (3, 1)
    assert f"{path}:2: not JSON" in job.messages()[-1]


def test_a_long_document_is_refused_with_its_length(job: Job) -> None:
    path = job.write([chat(0), chat(1, repeat=100)])
    with pytest.raises(UserError, match=rf"{path}:2: [\d,]+ tokens do not fit a block of 256"):
        job.run()


def test_long_documents_are_cut_within_their_budget(job: Job) -> None:
    path = job.write([chat(number) for number in range(9)] + [chat(9, repeat=100)])
    job.text = "packing { long_documents: TRUNCATE }"
    with pytest.raises(UserError, match=rf"1 of 10 documents are cut(.|\n)*{path}:10: [\d,]+ tokens"):
        job.run()
    job.text += " error_budget { max_truncated_fraction: 0.1 }"
    assert job.run().data.splits[0].truncated_document_count == 1


def test_a_cut_that_leaves_no_answer_is_a_bad_record(job: Job) -> None:
    record = chat(0)
    record["messages"][0]["content"] *= 100
    job.write([chat(1), record])
    job.text = "packing { long_documents: TRUNCATE } error_budget { max_truncated_fraction: 1 }"
    with pytest.raises(UserError, match=r"chats.jsonl:2: cut to a block of 256 tokens, nothing of the answer is left"):
        job.run()


def test_long_documents_are_split_without_losing_a_token(job: Job) -> None:
    job.write([chat(0), chat(1, repeat=100)])
    job.text = "packing { long_documents: SPLIT }"
    train = job.run().data.splits[0]
    assert train.later_piece_count > 1
    assert train.document_count == 2 + train.later_piece_count
    assert f"{train.later_piece_count} of them later pieces" in job.messages()[-1]
    job.text = "packing { block_size: 4096 }"
    shutil.rmtree(job.artifact)
    whole = job.run().data.splits[0]
    assert train.token_count == whole.token_count
    assert 0 <= whole.trained_token_count - train.trained_token_count <= train.later_piece_count


def test_an_empty_dataset_is_refused(job: Job) -> None:
    job.write([])
    with pytest.raises(UserError, match=r"data_prep.sources: there are no records in .*jsonl"):
        job.run()
    assert not job.artifact.exists()


@pytest.mark.parametrize("reason", ["none of the 3 documents is held out", "holds out all 3 documents"])
def test_an_empty_split_is_refused(job: Job, tokenizer_folder: Path, reason: str) -> None:
    job.write([chat(0)] * 3)  # duplicates are held out together, by a coin that the seed throws
    tokenizer = tokenization.load(tokenizer_folder)
    ids_T = np.array(tokenizer.apply_chat_template(chat(0)["messages"], return_dict=False))
    digest = split.content_digest(Document(ids_T, ids_T > 0))
    holds_out = [split.content_hash(digest, seed) < 2**63 for seed in range(20)]
    job.text = f"evaluation {{ fraction: 0.5 }} seed: {holds_out.index('all' in reason)}"
    with pytest.raises(UserError, match=reason):
        job.run()
    assert not job.artifact.exists()


def test_records_that_the_template_makes_equal_stay_on_one_side(job: Job) -> None:
    """Else the linter, which sees tokens, would stop the job."""
    job.template = SMOLLM2_TEMPLATE.replace("message['content']", "message['content'].strip()")
    for number in range(20):
        padded = chat(number)
        padded["messages"][0]["content"] += " \n"
        job.write([chat(number), padded], f"{number}.jsonl")
    job.text = "evaluation { fraction: 0.3 } filter { deduplication {} }"
    data = job.run().data
    assert data.sources[0].filtered_record_counts["duplicates"] == 20
    shutil.rmtree(job.artifact)
    job.text = "evaluation { fraction: 0.3 }"
    assert [split.document_count % 2 for split in job.run().data.splits] == [0, 0]


def test_a_second_run_returns_the_finished_artifact(job: Job) -> None:
    job.write([chat(0)])
    first = job.run()
    assert job.run().finished_at == first.finished_at


def test_another_config_or_other_data_never_overwrites(job: Job) -> None:
    job.write([chat(0)])
    job.run()
    job.text = "seed: 5"
    with pytest.raises(UserError, match="was prepared with another config and is not overwritten"):
        job.run()
    job.text = ""
    job.write([chat(1)])
    with pytest.raises(UserError, match="was prepared from files that have changed since"):
        job.run()


def test_leftovers_of_a_killed_try_are_not_taken_for_data(job: Job) -> None:
    job.write([chat(0)])
    job.artifact.mkdir(parents=True)
    (job.artifact / "train-00007.arrow.partial").write_bytes(b"half")
    (job.artifact / "train-00000.arrow").write_bytes(b"old")
    written = {file.path for file in job.run().files}
    assert {path for path in written if path.endswith(("arrow", "partial"))} == {"train-00000.arrow"}
    left = sorted(path.name for path in job.artifact.iterdir())
    assert left == ["manifest.json", "report.html", "tokenizer", "train-00000.arrow"]


def test_sources_need_different_names(job: Job) -> None:
    job.write([chat(0)])
    job.text = 'sources { paths: "*.jsonl" }'
    with pytest.raises(UserError, match=r"2 are named '\*.jsonl'; give each a name"):
        job.run()


def test_on_the_fly_keeps_documents_apart_for_the_trainer(job: Job, tokenizer_folder: Path) -> None:
    job.write([chat(number) for number in range(40)])
    job.text = "packing { mode: ON_THE_FLY window_documents: 16 } evaluation { fraction: 0.2 }"
    data = job.run().data
    assert (data.packed, data.window_documents, data.block_size) == (False, 16, 256)
    assert [split.block_count for split in data.splits] == [0, 0]
    assert "the trainer packs them into blocks of 256 tokens" in job.messages()[0]
    tokenizer = tokenization.load(tokenizer_folder)
    answers = []
    for name in ("train", "evaluation"):
        reader = DocumentReader(job.artifact, name)
        answers += [tokenizer.decode(ids[mask]) for ids, mask in map(reader.read, range(len(reader)))]
    assert sorted(answers) == sorted(f"Answer {number} it is.<|im_end|>" for number in range(40))


def test_without_packing_each_block_holds_one_document(job: Job) -> None:
    job.write([chat(number) for number in range(5)])
    job.text = "packing { mode: NONE }"
    assert job.run().data.splits[0].block_count == 5
    blocks = shards.SplitReader(job.artifact, "train").read(range(5))
    assert np.unique(blocks.document_id_NL).tolist() == [-1, 0]


def test_other_schemas_reach_the_same_shards(job: Job) -> None:
    def run(name: str, lines: list[Any], schema: str) -> list[str]:
        shutil.rmtree(job.folder / "finecut-runs", ignore_errors=True)
        job.write(lines, f"{name}.jsonl")
        job.text = f"sources {{ paths: '{name}.jsonl' conversation {{ {schema} }} }}"
        config = job.config()
        del config.stages[0].data_prep.sources[0]
        return [file.sha256 for file in run_stage(config, "prepare").files if file.path.endswith(".arrow")]

    turns = [[message["content"] for message in chat(number)["messages"]] for number in range(20)]
    sharegpt = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in turns]
    expected = run("openai", [chat(number) for number in range(20)], "")
    assert run("sharegpt", sharegpt, "schema: SHAREGPT") == expected
    assert run("alpaca", [{"instruction": q, "output": a} for q, a in turns], "schema: ALPACA") == expected


def test_a_remote_file_is_prepared_and_a_missing_one_is_named(job: Job) -> None:
    path = job.write([chat(number) for number in range(3)], "chats.txt")
    fsspec.filesystem("memory").pipe_file("/prepare_test/chats.jsonl", path.read_bytes())
    job.text = 'sources { paths: "memory://prepare_test/*.jsonl" name: "remote" }'
    job.write([], "chats.jsonl")
    assert job.run().data.sources[1].record_count == 3
    assert job.run().data.sources[1].record_count == 3  # and found unchanged
    shutil.rmtree(job.artifact)
    job.text = 'sources { paths: "memory://prepare_test/gone.jsonl" }'
    with pytest.raises(UserError, match=r"sources 'gone.jsonl': there is no such file: memory://prepare_test/gone"):
        job.run()


def test_a_filter_leaves_out_and_counts(job: Job) -> None:
    lines = [{**chat(number), "lang": "de" if number < 3 else "en", "score": number} for number in range(20)]
    job.write([*lines, lines[10], {**chat(50, repeat=100), "lang": "en", "score": 9}])
    job.text = """filter {
      expression: "score != 5" language_field: "lang" languages: "en" max_tokens: 256 deduplication {}
    }"""
    data = job.run().data
    assert dict(data.sources[0].filtered_record_counts) == {
        "expression": 1,
        "languages": 3,
        "max_tokens": 1,
        "duplicates": 1,
    }
    assert (data.sources[0].record_count, data.splits[0].document_count) == (22, 16)
    assert job.messages()[-1] == ("filter left out 1 by duplicates, 1 by expression, 3 by languages, 1 by max_tokens")


def test_a_filter_that_leaves_nothing_says_so(job: Job) -> None:
    job.write([chat(0), chat(1)])
    job.text = "filter { min_tokens: 10000 }"
    with pytest.raises(UserError, match=r"no record is left \(filter left out 2 by min_tokens\) in "):
        job.run()


def test_texts_logs_and_conversations_mix(job: Job, tokenizer_folder: Path) -> None:
    job.write([chat(0)])
    job.write([{"text": "Once upon a time."}], "book.json")
    job.write([{"who": "Ada", "events": ["tea", "rain", "cake"]}, {"who": "Bob", "events": ["tea"]}], "log.json")
    job.text = """
      sources { paths: "book.json" format: JSONL text {} }
      sources { paths: "log.json" format: JSONL epochs: 1.5 interaction {
        prompt_template: "{{ who }}: {{ events | join(', ') }}" answer_template: "{{ event }}" } }
      error_budget { max_records: 1 }"""
    artifact = job.run()
    assert [source.bad_record_count for source in artifact.data.sources] == [0, 0, 1]
    assert [source.WhichOneof("mixing") for source in artifact.data.sources] == [None, None, "epochs"]
    assert [(part.source, part.row_count) for part in artifact.data.splits[0].sources] == [(0, 1), (1, 1), (2, 1)]
    assert "log.json:2: events: 1 events; a record needs 2" in job.messages()[-1]
    tokenizer = tokenization.load(tokenizer_folder)
    blocks = shards.SplitReader(job.artifact, "train").read([0, 1, 2])  # a block has one source
    trained = tokenizer.decode(blocks.input_ids_NL[blocks.loss_mask_NL])
    assert all(part in trained for part in ("Answer 0 it is.<|im_end|>", "cake<|im_end|>", "upon a time.<|eos|>"))
    assert "Ada" not in trained and "rain" not in trained


def test_texts_need_no_chat_template(job: Job, tokenizer_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tokenizer_folder, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    job.write([{"text": f"Number {number}."} for number in range(5)])
    job.text = f'tokenization {{ tokenizer: "{base}" }}'
    with pytest.raises(UserError, match="no single chat template"):
        job.run()
    config = job.config()
    config.stages[0].data_prep.sources[0].text.text_field = "text"
    assert run_stage(config, "prepare").data.splits[0].document_count == 5


# Qwen3's shape: an empty <think> block before the last answer only.
REWRITING_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_turns_that_the_template_rewrites_are_counted_and_stay_on_one_side(job: Job, tokenizer_folder: Path) -> None:
    (job.folder / "rewriting.jinja").write_text(REWRITING_TEMPLATE)
    # Openings that several conversations share give equal documents: the linter would stop them on different sides.
    job.write([{"messages": chat(n % 20)["messages"] + chat(n)["messages"]} for n in range(80)])
    job.text = 'tokenization { chat_template_file: "rewriting.jinja" } evaluation { fraction: 0.3 }'
    splits = job.run().data.splits
    assert [entry.name for entry in splits] == ["train", "evaluation"]
    assert sum(entry.document_count for entry in splits) == 160
    assert sum(entry.earlier_turn_document_count for entry in splits) == 80
    assert all(0 < 2 * entry.earlier_turn_token_count < entry.token_count for entry in splits)
    found = next(line for line in job.messages() if line.startswith("train:"))
    assert f"{splits[0].earlier_turn_document_count:,} of them" in found and "rewrites in history" in found


def test_a_text_that_cannot_be_used_is_reported_with_its_line(job: Job) -> None:
    job.write([{"text": "Fine."}, {"text": "Not <|im_end|> fine."}])
    config = job.config()
    config.stages[0].data_prep.sources[0].text.text_field = "text"
    with pytest.raises(UserError, match=r"chats.jsonl:2: the text holds the special token '<\|im_end\|>'"):
        run_stage(config, "prepare")

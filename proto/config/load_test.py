"""Loading a job: merging, defaults, paths, and every kind of bad input, all at once."""

import json
import re
from pathlib import Path

import pytest

from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, diff, load_job, load_resolved, resolve, waves

JOB = """
# proto-file: proto/job.proto
# proto-message: finecut.v1.JobConfig
name: "small"
defaults { batch { global_blocks: 4 } optimizer { learning_rate: 1e-3 } }
stages {
  name: "prepare"
  data_prep { sources { paths: "data.jsonl" } tokenization { tokenizer: "model" } }
}
stages {
  name: "sft"
  sft {
    model { path: "model" lora { targets: ["q_proj", 'v_proj'] } }
    data: "@prepare"
    training { max_steps: 5 optimizer { beta1: 0.8 } }
  }
}
stages { name: "export" export { model: "@sft" } }
storage { root: "runs" }
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands: with a model and a data file."""
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    (tmp_path / "model").mkdir()
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 192, "vocab_size": 500}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"max_position_embeddings": 2048} | sizes))
    (tmp_path / "data.jsonl").write_text("{}\n")
    return tmp_path


def load(home: Path, text: str, *overrides: str, name: str = "job.textproto") -> job_pb2.JobConfig:
    (home / name).write_text(text)
    return load_job(name, overrides)


def problems(home: Path, text: str, *overrides: str, name: str = "job.textproto") -> dict[str, str]:
    """Messages by path; the load must fail."""
    with pytest.raises(ConfigError) as caught:
        load(home, text, *overrides, name=name)
    return {problem.path: problem.message for problem in caught.value.problems}


class TestResolved:
    def test_merges_defaults_field_by_field(self, home: Path) -> None:
        training = load(home, JOB).stages[1].sft.training
        assert training.optimizer.learning_rate == 1e-3
        assert training.optimizer.beta1 == 0.8
        assert training.batch.global_blocks == 4
        assert training.max_steps == 5

    def test_writes_out_the_contracts_defaults(self, home: Path) -> None:
        job = load(home, JOB)
        assert job.stages[0].data_prep.packing.block_size == 2048
        assert job.stages[0].data_prep.sources[0].WhichOneof("record") == "conversation"
        assert job.stages[1].sft.training.recovery.backoff.seconds == 1
        assert job.cluster.WhichOneof("provider") == "local"
        assert not job.HasField("defaults")

    def test_learning_rate_depends_on_the_adapters(self, home: Path) -> None:
        without_rate = JOB.replace("optimizer { learning_rate: 1e-3 }", "")
        assert load(home, without_rate).stages[1].sft.training.optimizer.learning_rate == 2e-4
        full = without_rate.replace("lora { targets: [\"q_proj\", 'v_proj'] }", "")
        assert load(home, full).stages[1].sft.training.optimizer.learning_rate == 2e-5

    def test_the_messages_field_depends_on_the_schema(self, home: Path) -> None:
        for schema, name in (("OPENAI", "messages"), ("SHAREGPT", "conversations"), ("ALPACA", "")):
            text = JOB.replace('"data.jsonl"', f'"data.jsonl" conversation {{ schema: {schema} }}')
            job = load(home, text)
            assert job.stages[0].data_prep.sources[0].conversation.messages_field == name
            assert resolve(job) == job

    def test_remote_inputs_are_left_as_they_are(self, home: Path) -> None:
        job = load(home, JOB.replace("data.jsonl", "s3://bucket/*.jsonl"))
        assert job.stages[0].data_prep.sources[0].paths == ["s3://bucket/*.jsonl"]

    def test_a_dataset_folder_is_an_input_where_its_format_says_so(self, home: Path) -> None:
        (home / "set").mkdir()
        (home / "set" / "state.json").write_text("{}")
        text = JOB.replace('"data.jsonl"', '"set" format: HF_DATASET')
        assert load(home, text).stages[0].data_prep.sources[0].paths == [str(home / "set")]
        found = problems(home, text.replace("format: HF_DATASET", ""))
        assert "set format to HF_DATASET" in found["stages[0].data_prep.sources[0].paths[0]"]
        found = problems(home, text.replace('"set"', '"data.jsonl"'))
        assert "is not a folder" in found["stages[0].data_prep.sources[0].paths[0]"]

    def test_leaves_parts_off_that_are_off_when_unset(self, home: Path) -> None:
        job = load(home, JOB.replace("lora { targets: [\"q_proj\", 'v_proj'] }", ""))
        assert not job.stages[1].sft.model.HasField("lora")
        assert not job.storage.HasField("encryption")

    def test_makes_paths_absolute_where_the_user_stands(self, home: Path) -> None:
        job = load(home, JOB)
        assert job.storage.root == str(home / "runs")
        assert job.stages[0].data_prep.sources[0].paths == [str(home / "data.jsonl")]
        assert job.stages[1].sft.data == "@prepare"

    def test_yaml_has_the_same_schema(self, home: Path) -> None:
        yaml = """
        name: small
        defaults: {batch: {global_blocks: 4}, optimizer: {learning_rate: 0.001}}
        stages:
          - name: prepare
            data_prep: {sources: [{paths: [data.jsonl]}], tokenization: {tokenizer: model}}
          - name: sft
            sft:
              model: {path: model, lora: {targets: [q_proj, v_proj]}}
              data: "@prepare"
              training: {max_steps: 5, optimizer: {beta1: 0.8}}
          - {name: export, export: {model: "@sft"}}
        storage: {root: runs}
        """
        assert load(home, yaml, name="job.yaml") == load(home, JOB)

    def test_resolving_again_changes_nothing(self, home: Path) -> None:
        job = load(home, JOB)
        assert resolve(job) == job

    def test_reads_back_what_was_stored(self, home: Path) -> None:
        job = load(home, JOB)
        (home / "stored.textproto").write_text(str(job))
        assert load_resolved(home / "stored.textproto") == job

    def test_orders_stages_in_waves(self, home: Path) -> None:
        job = load(home, JOB + 'stages { name: "other" after: "@prepare" export { model: "model" } }')
        assert waves(job) == [["prepare"], ["sft", "other"], ["export"]]


class TestOverrides:
    def test_set_a_field_by_index_or_by_name(self, home: Path) -> None:
        for path in ("stages[1]", "stages[sft]", "stages.sft", "stages.1"):
            assert load(home, JOB, f"{path}.sft.training.max_steps=9").stages[1].sft.training.max_steps == 9

    def test_switch_a_oneof_of_numbers(self, home: Path) -> None:
        assert (
            load(home, JOB, "stages.sft.sft.training.epochs=2").stages[1].sft.training.WhichOneof("length") == "epochs"
        )

    def test_set_messages_and_lists(self, home: Path) -> None:
        lora = load(home, JOB, "stages.sft.sft.model.lora={rank: 3, targets: [o_proj]}").stages[1].sft.model.lora
        assert (lora.rank, list(lora.targets)) == (3, ["o_proj"])

    @pytest.mark.parametrize(
        ("override", "hint"),
        [
            ("stages.sft.sft.training.max_step=9", "did you mean max_steps?"),
            ("stages.sfx.sft.training.max_steps=9", "did you mean sft?"),
            ("stages.sft.dpo.data=@prepare", "sft is set, not dpo"),
            ("stages.sft.sft.training.max_steps=many", "expected a whole number"),
            ("storage.root", 'no "="'),
            ("name.first=x", "nothing is below it"),
        ],
    )
    def test_say_what_is_wrong(self, home: Path, override: str, hint: str) -> None:
        assert hint in str(problems(home, JOB, override))


class TestBadInput:
    def test_missing_file(self, home: Path) -> None:
        with pytest.raises(ConfigError, match="does not exist"):
            load_job("nothing.textproto")

    def test_not_text(self, home: Path) -> None:
        (home / "job.textproto").write_bytes(b"name: \xff\xfe")
        with pytest.raises(ConfigError, match="not UTF-8"):
            load_job("job.textproto")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('name: "x', "unexpected character"),
            ("name: ", "ends too early"),
            ("stages { ", "expected }"),
            ("name ] 3", "expected : or {"),
            ("stages: [1 2]", "expected , or ]"),
            ("{", "expected a field name"),
        ],
    )
    def test_syntax_names_the_line(self, home: Path, text: str, message: str) -> None:
        (home / "job.textproto").write_text("\n" + text)
        with pytest.raises(ConfigError, match=r"job\.textproto:2") as caught:
            load_job("job.textproto")
        assert message in str(caught.value)

    def test_bad_yaml_names_the_line(self, home: Path) -> None:
        (home / "job.yaml").write_text("name: x\nstages: [")
        with pytest.raises(ConfigError, match=r"job.yaml:\d"):
            load_job("job.yaml")

    def test_all_errors_come_at_once(self, home: Path) -> None:
        text = """
        name: "Bad Name"
        defaults { batch { global_blocks: 0 } }
        stages { name: "prepare" data_prep {
          sources { paths: "gone.jsonl" } tokenization { tokenizer: "gone" } packin {} } }
        stages { name: "sft" sft { model { path: "@exporr" lora { targets: "qproj" } } data: "@export"
                 training { max_steps: "5" precision: HALF } } }
        stages { name: "sft" deploy {} }
        stages { name: "export" export { } }
        stages { name: "none" }
        """
        found = problems(home, text)
        assert "did you mean packing?" in found["stages[0].data_prep.packin"]
        assert "pattern" in found["name"]
        assert "at least 1" in found["defaults.batch.global_blocks"]
        assert "does not exist" in found["stages[0].data_prep.sources[0].paths[0]"]
        assert "does not exist" in found["stages[0].data_prep.tokenization.tokenizer"]
        assert "did you mean @export?" in found["stages[1].sft.model.path"]
        assert "does not make prepared data" in found["stages[1].sft.data"]
        assert "did you mean q_proj?" in found["stages[1].sft.model.lora.targets[0]"]
        assert "remove the quotes" in found["stages[1].sft.training.max_steps"]
        assert "use one of: AUTO, FP32, BF16, FP16" in found["stages[1].sft.training.precision"]
        assert "rename one" in found["stages[2].name"]
        assert "required" in found["stages[2].deploy.model"]
        assert "required" in found["stages[3].export.model"]
        assert "set one of" in found["stages[4]"]

    def test_a_path_too_long_for_the_system_does_not_exist(self, home: Path) -> None:
        name = "x" * 300
        text = (
            JOB.replace("data.jsonl", name)
            .replace('"@prepare"', f'"{name}"')
            .replace('path: "model"', f'path: "{name}"')
        )
        found = problems(home, text)
        assert "does not exist" in found["stages[0].data_prep.sources[0].paths[0]"]
        assert "holds no prepared data" in found["stages[1].sft.data"]
        assert "does not exist" in found["stages[1].sft.model.path"]

    def test_a_bad_default_is_reported_once(self, home: Path) -> None:
        found = problems(home, JOB.replace("global_blocks: 4", "global_blocks: 0"))
        assert list(found) == ["defaults.batch.global_blocks"]

    def test_cycle(self, home: Path) -> None:
        text = JOB.replace(
            'model { path: "model" lora { targets: ["q_proj", \'v_proj\'] } }', 'model { path: "@export" }'
        )
        assert "sft -> export -> sft" in problems(home, text)["stages"]

    def test_stage_that_refers_to_itself(self, home: Path) -> None:
        assert "export -> export" in problems(home, JOB.replace('model: "@sft"', 'model: "@export"'))["stages"]

    def test_field_set_twice_and_oneof_set_twice(self, home: Path) -> None:
        found = problems(home, JOB + 'name: "again" storage { root: "x" }')
        assert "set twice" in found["name"]
        assert "set twice" in found["storage"]
        found = problems(home, JOB.replace("max_steps: 5", "max_steps: 5 epochs: 1"))
        assert "only one of max_steps, epochs" in found["stages[1].sft.training.epochs"]

    @pytest.mark.parametrize(
        ("change", "path", "message"),
        [
            (
                ("max_steps: 5", "max_steps: 5 parallelism { tensor_parallel_size: 3 }"),
                "stages[1].sft.training.parallelism.tensor_parallel_size",
                "3 does not divide the model's 4 heads and 2 key heads, nor is it a multiple of them",
            ),
            (('storage { root: "runs" }', "cluster { aws {} }"), "cluster.aws.bundle", "is required"),
            (('root: "runs"', 'root: "s3://bucket/x"'), "storage.root", "not in this version"),
            (
                ("max_steps: 5", "max_steps: 5 compile: true activation_checkpointing: SELECTIVE"),
                "stages[1].sft.training.activation_checkpointing",
                "does nothing in compiled layers",
            ),
            (("q_proj", "w_proj"), "stages[1].sft.model.lora.targets[0]", "did you mean"),
            (
                ("global_blocks: 4", "global_blocks: 4 micro_blocks: 3"),
                "stages[1].sft.training.batch.global_blocks",
                "3",
            ),
            (
                ('"data.jsonl"', '"data.jsonl" conversation { schema: ALPACA messages_field: "x" }'),
                "stages[0].data_prep.sources[0].conversation.messages_field",
                "unset it",
            ),
            (
                ('sft {\n    model { path: "model"', 'dpo {\n    model { path: "model" added_tokens: "<x>"'),
                "stages[1].dpo.model.added_tokens",
                "unset lora",
            ),
            (
                ('sft {\n    model { path: "model"', 'dpo {\n    model { path: "model" semantic_id_count: 9'),
                "stages[1].dpo.model.semantic_id_count",
                "unset lora",
            ),
            (("lora {", "semantic_id_count: 0 lora {"), "stages[1].sft.model.semantic_id_count", "at least 1"),
            (("lora {", "head { scalar {} } lora {"), "stages[1].sft.model.head", "language-model head"),
            (
                ('"data.jsonl" }', '"data.jsonl" } sources { paths: "data.jsonl" name: "b" weight: 2 }'),
                "stages[0].data_prep.sources[0].weight",
                "sources[1] has one; set weight for all sources or for none",
            ),
            (
                ('"data.jsonl"', '"data.jsonl" epochs: 2 token_budget: 5'),
                "stages[0].data_prep.sources[0].token_budget",
                "only one of",
            ),
            (('"data.jsonl"', '"data.jsonl" epochs: 0'), "stages[0].data_prep.sources[0].epochs", "greater than 0"),
            (('tokenizer: "model"', 'tokenizer: "s3://b/m"'), "stages[0].data_prep.tokenization.tokenizer", "remote"),
            (("data.jsonl", "*.nothing"), "stages[0].data_prep.sources[0].paths[0]", "no file matches"),
            (("data.jsonl", "model/config.json"), "stages[0].data_prep.sources[0].paths[0]", "set format"),
            (("max_steps: 5", 'recovery { backoff: "soon" }'), "stages[1].sft.training.recovery.backoff", "duration"),
            (
                ('tokenizer: "model" }', 'tokenizer: "model" } packing { block_size: 4096 }'),
                "stages[1].sft.data",
                "2,048 positions",
            ),
        ],
    )
    def test_values_that_cannot_be(self, home: Path, change: tuple[str, str], path: str, message: str) -> None:
        assert change[0] in JOB
        assert message in problems(home, JOB.replace(*change))[path]

    @pytest.mark.parametrize("tokens", ['[""]', '["<x>", "<x>"]'])
    def test_added_tokens_are_words_and_differ(self, home: Path, tokens: str) -> None:
        text = re.sub(r"lora \{.*?\}", f"added_tokens: {tokens}", JOB)
        assert "name each once" in problems(home, text)["stages[1].sft.model.added_tokens"]

    def test_a_mesh_that_is_not_the_number_of_ranks(self, home: Path) -> None:
        text = JOB.replace("max_steps: 5", "max_steps: 5 parallelism { shard_size: 3 }")
        found = problems(home, text + "cluster { local { rank_count: 4 } }")
        assert "3 is not the number of ranks, 4" in found["stages[1].sft.training.parallelism.shard_size"]

    def test_what_is_set_to_its_default_is_fine_although_unavailable(self, home: Path) -> None:
        load(home, JOB.replace("max_steps: 5", "max_steps: 5 compile: false metrics { every_steps: 1 }"))


class TestDiff:
    def test_names_fields_that_differ(self, home: Path) -> None:
        old, new = load(home, JOB), load(home, JOB, "stages.sft.sft.training.max_steps=6", "name=other")
        assert diff(old, new) == ['name: "small" -> "other"', "stages[1].sft.training.max_steps: 5 -> 6"]

    def test_leaves_out_what_is_safe_to_change(self, home: Path) -> None:
        change = "stages.sft.sft.training.checkpointing.every_steps=6"
        assert diff(load(home, JOB), load(home, JOB, change, "storage.root=elsewhere")) == []

    def test_a_default_written_out_is_no_difference(self, home: Path) -> None:
        assert diff(load(home, JOB), load(home, JOB, "stages.prepare.data_prep.packing.block_size=2048")) == []

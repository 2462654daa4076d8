"""The export stage on tiny real models: what it writes, what it proves, what it refuses."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from google.protobuf import text_format

from finecut.dataprep.testing import MARKED_TEMPLATE, TURN_END
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, resolve
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.trainer.models.huggingface import locate_model, save_adapter
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.lora import LoraConfig, lora_layers
from finecut.trainer.stages import export
from finecut.trainer.testing import write_tiny_llama


def make_job(tmp_path, model, **fields) -> job_pb2.JobConfig:
    lines = "\n".join(f"{name}: {value}" for name, value in fields.items())
    text = f"""
        name: "test"
        storage {{ root: "{tmp_path}/runs" }}
        stages {{
          name: "export"
          export {{
            model: "{model}" sample_prompts: "How are you?" sample_max_new_tokens: 5 check_vllm: false {lines}
          }}
        }}
    """
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=tmp_path)


def write_adapter(folder, source):
    model = load_decoder(source, lora=LoraConfig(rank=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_b.normal_(std=0.1, generator=generator)
    save_adapter(model, folder, str(source))
    return folder


def messages(job) -> str:
    return "\n".join(event.message for event in follow(RunFolder.of(job).events("export"))[0])


@pytest.mark.parametrize("weight_type", ["WEIGHT_BF16", "WEIGHT_FP16", "WEIGHT_FP32"])
def test_merged_adapter_loads_in_transformers(weight_type, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", write_tiny_llama(tmp_path / "source"))
    job = make_job(tmp_path, adapter, weight_type=weight_type)
    artifact = export.run_export(job, "export")

    folder = RunFolder.of(job).artifact("export")
    assert artifacts.read(folder, verify=True) == artifact
    assert not artifact.model.adapter and not artifact.model.base_model
    metrics = artifact.model.metrics
    assert 0 <= metrics["logit_max_difference"] < 1e-2
    # Kullback-Leibler, in nats: what is left at FP32 is the order of sums.
    low, high = {"WEIGHT_BF16": (1e-5, 1e-2), "WEIGHT_FP16": (1e-7, 1e-4), "WEIGHT_FP32": (-1e-7, 1e-7)}[weight_type]
    assert low < metrics["rounding_divergence"] < high
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    names = {"WEIGHT_BF16": torch.bfloat16, "WEIGHT_FP16": torch.float16, "WEIGHT_FP32": torch.float32}
    assert model.dtype == names[weight_type]
    source = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    before, after = (m.model.layers[0].mlp.up_proj.weight.float() for m in (source, model))
    assert (after - before).abs().max() > 0.01
    (sample,) = artifact.model.samples
    assert sample.prompt == "How are you?" and sample.answer
    assert sample.answer in messages(job) and "logits are equal" in messages(job)


def test_a_model_larger_than_a_file_may_be_is_written_in_shards_that_load(tmp_path):
    source = write_tiny_llama(tmp_path / "source", intermediate_size=2048)  # 3 MB of BF16
    job = make_job(tmp_path, source, max_shard_bytes=1_000_000)
    artifact = export.run_export(job, "export")  # which reloads it
    shards = [file for file in artifact.files if file.path.endswith(".safetensors")]
    assert len(shards) > 1 and all(file.bytes < 1_010_000 for file in shards)
    index = json.loads((RunFolder.of(job).artifact("export") / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.path for file in shards}


def test_adapter_format_loads_in_peft(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    job = make_job(tmp_path, write_adapter(tmp_path / "adapter", source), format="ADAPTER")
    artifact = export.run_export(job, "export")
    folder = RunFolder.of(job).artifact("export")
    assert artifact.model.adapter and artifact.model.base_model == str(source)
    assert locate_model(folder).base == source
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert model.peft_config["default"].r == 4
    with pytest.raises(UserError, match=r"ADAPTER, but .* is a whole model; use MERGED"):
        export.run_export(make_job(tmp_path / "other", source, format="ADAPTER"), "export")


@pytest.mark.parametrize("format", ["MERGED", "ADAPTER"])
def test_the_tokenizer_that_an_adapter_was_trained_with_is_exported(format, tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    adapter = write_adapter(tmp_path / "adapter", source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template += "{# another #}"
    tokenizer.save_pretrained(adapter)
    job = make_job(tmp_path, adapter, format=format)
    export.run_export(job, "export")
    exported = transformers.AutoTokenizer.from_pretrained(RunFolder.of(job).artifact("export"))
    assert exported.chat_template == tokenizer.chat_template


def test_the_card_says_where_the_model_is_from_and_what_was_checked(tmp_path):
    job = make_job(tmp_path, write_adapter(tmp_path / "adapter", write_tiny_llama(tmp_path / "source")))
    artifact = export.run_export(job, "export")
    card = (RunFolder.of(job).artifact("export") / "README.md").read_text()
    assert card.startswith("---\nbase_model:\n- source\nlibrary_name: transformers\n")
    assert artifact.fingerprints.config in card and artifact.fingerprints.code in card
    assert "| transformers | logits are the trainer's: max abs difference" in card
    assert artifact.model.samples[0].answer in card and str(tmp_path) not in card


def test_second_run_returns_the_first_artifact_and_a_killed_one_is_replaced(tmp_path):
    job = make_job(tmp_path, write_tiny_llama(tmp_path / "source"))
    first = export.run_export(job, "export")
    assert export.run_export(job, "export") == first
    folder = RunFolder.of(job).artifact("export")
    (folder / "manifest.json").unlink()
    (folder.parent / "artifact.partial").mkdir()
    (folder.parent / "artifact.partial" / "junk").write_text("half")
    second = export.run_export(job, "export")
    assert [f.sha256 for f in second.files] == [f.sha256 for f in first.files]
    assert not (folder.parent / "artifact.partial").exists()
    with pytest.raises(UserError, match=r"was made with other settings"):
        export.run_export(make_job(tmp_path, tmp_path / "source", weight_type="WEIGHT_FP16"), "export")


def test_steps_and_metrics_come_from_the_stage_that_trained(tmp_path):
    job = make_job(tmp_path, write_tiny_llama(tmp_path / "elsewhere"))
    job.stages[0].export.model = "@sft"
    job.stages.add(name="sft").sft.model.path = "/base"
    run = RunFolder.of(job)
    with pytest.raises(artifacts.ArtifactError, match="run its stage first"):
        export.run_export(job, "export")
    source = write_tiny_llama(run.artifact("sft"))
    content = artifact_pb2.ModelArtifact(steps=12, metrics={"evaluation_loss": 1.5})
    artifacts.write(source, artifact_pb2.Artifact(stage="sft", model=content))
    exported = export.run_export(job, "export").model
    assert exported.steps == 12 and exported.metrics["evaluation_loss"] == 1.5

    shutil.rmtree(run.stage("export"))
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (source / "model.safetensors").write_bytes(weights)
    with pytest.raises(artifacts.ArtifactError, match="another content than when it was written"):
        export.run_export(job, "export")


def test_disagreement_leaves_no_artifact(tmp_path, monkeypatch):
    """A writer that loses a layer's weights is caught."""
    honest = export.save_model

    def lossy(model, folder, *rest):
        kept = model.layers[1].mlp.down_proj.weight.detach().clone()
        model.layers[1].mlp.down_proj.weight.data.zero_()
        honest(model, folder, *rest)
        model.layers[1].mlp.down_proj.weight.data.copy_(kept)

    monkeypatch.setattr(export, "save_model", lossy)
    job = make_job(tmp_path, write_tiny_llama(tmp_path / "source"))
    with pytest.raises(UserError, match=r"does not compute what was trained: max abs difference"):
        export.run_export(job, "export")
    stage = RunFolder.of(job).stage("export")
    assert {path.name for path in stage.iterdir()} == {"events.jsonl"}


def test_overflow_in_fp16_names_the_fix(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(source)
    with pytest.raises(UserError, match=r"do not fit torch.float16; use export.weight_type WEIGHT_BF16"):
        export.run_export(make_job(tmp_path, source, weight_type="WEIGHT_FP16"), "export")


@pytest.mark.parametrize("existing", [{"eos_token_id": 2}, None])
def test_end_of_turn_is_added_where_generation_would_not_stop(existing, tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    (source / "generation_config.json").unlink()
    if existing:
        (source / "generation_config.json").write_text(json.dumps(existing))
    job = make_job(tmp_path, source)
    export.run_export(job, "export")
    folder = RunFolder.of(job).artifact("export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [2, tokenizer.convert_tokens_to_ids(TURN_END)]
    assert f"added the chat template's end of turn {TURN_END}" in messages(job)


def test_template_without_an_end_of_turn_is_said(tmp_path):
    template = MARKED_TEMPLATE.replace(TURN_END, "")
    job = make_job(tmp_path, write_tiny_llama(tmp_path / "source", chat_template=template.replace("<|im_start|>", "#")))
    export.run_export(job, "export")
    assert "no special token" in messages(job)


def test_missing_tokenizer_and_model_are_user_errors(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    job = make_job(tmp_path, source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(UserError, match=r"AutoTokenizer cannot load"):
        export.run_export(job, "export")
    shutil.rmtree(source)
    with pytest.raises(UserError, match=r"no such folder"):
        export.run_export(job, "export")

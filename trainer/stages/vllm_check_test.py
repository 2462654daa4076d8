"""The export stage holds vLLM to the trainer, on tiny real models; vLLM starts once a test."""

import dataclasses

import pytest
import torch
import transformers
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import UserError, resolve
from finecut.proto.run import RunFolder, artifacts
from finecut.trainer.models.huggingface import save_adapter
from finecut.trainer.models.logits import load_decoder, packed_logits
from finecut.trainer.models.lora import LoraConfig, lora_layers
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.serving.offline import Answer
from finecut.trainer.stages import export, vllm_check


def make_job(tmp_path, model, fields="") -> job_pb2.JobConfig:
    text = f"""
        name: "test" storage {{ root: "{tmp_path}/runs" }}
        stages {{ name: "export" export {{ model: "{model}" {fields} }} }}
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


def test_a_tied_model_with_rows_beyond_its_tokenizer_is_served_as_trained(tmp_path):
    """524 rows are no multiple of 64; 24 of them, as semantic ids are, are no tokens of the tokenizer."""
    source = write_tiny_policy(tmp_path / "source", vocab_size=524, tie_word_embeddings=True)
    artifact = export.run_export(make_job(tmp_path, source), "export")
    assert 0 < artifact.model.metrics["vllm_max_difference"] < vllm_check.FP32_TOLERANCE
    folder = RunFolder.of(make_job(tmp_path, source)).artifact("export")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert reloaded.get_input_embeddings().weight.shape[0] == 524
    assert reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight
    assert "| vLLM | log-probabilities" in (folder / "README.md").read_text()


def test_an_adapter_is_served_on_its_base(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", write_tiny_policy(tmp_path / "source"))
    job = make_job(tmp_path, adapter, "format: ADAPTER")
    artifact = export.run_export(job, "export")
    assert artifact.model.adapter
    assert artifact.model.metrics["vllm_max_difference"] < vllm_check.FP32_TOLERANCE


def test_a_model_that_vllm_reads_differently_is_not_exported(tmp_path):
    """vLLM ignores a head_dim of Qwen2's own and loads a part of each projection, without a word."""
    source = write_tiny_policy(tmp_path / "source", "qwen2", head_dim=64, num_attention_heads=2, num_key_value_heads=1)
    job = make_job(tmp_path, source)
    with pytest.raises(UserError, match=r"vLLM.*(does not compute what was trained|cannot start)"):
        export.run_export(job, "export")
    with pytest.raises(artifacts.ArtifactError):
        artifacts.read(RunFolder.of(job).artifact("export"))


def _answer(ids, start, logits):
    chosen = vllm_check._chosen(logits, ids)[start - 1 :]
    return Answer(tuple(ids[start:].tolist()), tuple(chosen.tolist()), False)


class TestAgreement:
    """What counts as equal, without vLLM."""

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        return load_decoder(write_tiny_policy(tmp_path_factory.mktemp("model") / "source"))

    @pytest.fixture(scope="class")
    def documents(self):
        return [torch.tensor([1, 40, 41, 42]), torch.tensor([9, 8, 7])]

    @pytest.fixture(scope="class")
    def honest(self, model, documents):
        answers, stop = [], 3
        for document in documents:
            ids = document
            for _ in range(4):
                ids = torch.cat([ids, packed_logits(model, [ids])[0][-1:].argmax(-1)])
            [logits] = packed_logits(model, [ids])
            answers.append(_answer(ids, len(document), logits))
        logits = packed_logits(model, documents)
        chosen = [vllm_check._chosen(one, document) for one, document in zip(logits, documents, strict=True)]
        return vllm_check.VllmAnswers(chosen, answers, (stop,), True)

    def check(self, found, documents, model):
        return vllm_check.require_agreement(found, documents, lambda d: packed_logits(model, d))

    def test_honest_answers_agree(self, honest, documents, model):
        assert self.check(honest, documents, model) < 1e-4

    def test_one_log_probability_that_is_off_is_found(self, honest, documents, model):
        off = [honest.log_probabilities[0] + torch.tensor([0, 0.02, 0]), honest.log_probabilities[1]]
        with pytest.raises(UserError, match=r"differ by 0\.02 nats"):
            self.check(dataclasses.replace(honest, log_probabilities=off), documents, model)

    def test_another_token_is_found(self, honest, documents, model):
        ids = honest.answers[1].token_ids
        other = dataclasses.replace(honest.answers[1], token_ids=(*ids[:2], (ids[2] + 1) % 500, ids[3]))
        answers = [honest.answers[0], other]
        with pytest.raises(UserError, match=rf"token 2 of its greedy answer is .* trained model says {ids[2]}"):
            self.check(dataclasses.replace(honest, answers=answers), documents, model)

    @pytest.mark.parametrize("is_stopped", [True, False])
    def test_stopping_without_a_stop_token_or_going_on_after_one_is_found(self, honest, documents, model, is_stopped):
        stop = 3 if is_stopped else honest.answers[0].token_ids[1]
        answers = [dataclasses.replace(answer, is_stopped=is_stopped) for answer in honest.answers]
        found = dataclasses.replace(honest, answers=answers, stop_tokens=(stop,))
        with pytest.raises(UserError, match="does not stop where the trained one does"):
            self.check(found, documents, model)

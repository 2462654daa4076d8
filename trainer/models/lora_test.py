"""Adapters: where they sit, what they leave unchanged, and that merging and PEFT give the same logits."""

import json

import peft
import pytest
import torch
import transformers

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import locate_model, materialize, save_adapter, save_model
from finecut.trainer.models.lora import (
    ATTENTION_TARGETS,
    TARGETS,
    LoraConfig,
    LoraLinear,
    apply_lora,
    lora_layers,
    project,
)
from finecut.trainer.testing import FAMILIES, write_tiny_llama, write_tiny_model


def build(source, lora: LoraConfig | None = None, seed: int = 0) -> Decoder:
    source = locate_model(source)
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(source.base))
    if lora:
        apply_lora(model, lora)
    materialize(model, source, "cpu", seed)
    return model.eval()


def trained(source, lora: LoraConfig) -> Decoder:
    """A model whose adapters are no longer zero."""
    model = build(source, lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_b.normal_(std=0.1, generator=generator)
    return model


@torch.no_grad()
def logits(model: Decoder) -> torch.Tensor:
    positions = torch.arange(40).expand_as(input_ids())
    return model.logits(model(input_ids(), positions, torch.zeros_like(input_ids())))


def input_ids() -> torch.Tensor:
    return torch.randint(500, (2, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def reference_logits(model) -> torch.Tensor:
    return model(input_ids()).logits


def test_a_new_adapter_changes_nothing_and_trains_only_itself(tmp_path):
    source = write_tiny_llama(tmp_path)
    model = build(source, LoraConfig(rank=4, targets=("q_proj", "down_proj")))
    assert torch.equal(logits(model), logits(build(source)))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"layers.{i}.{layer}.lora_{matrix}"
        for i in range(2)
        for layer in ("attention.q_proj", "mlp.down_proj")
        for matrix in "ab"
    }
    first, second = (layer.lora_a for _, layer in list(lora_layers(model))[:2])
    assert first.std() > 0.01 and not torch.equal(first[:, :64], second[:, :64])


def test_seed_decides_the_adapter(tmp_path):
    source = write_tiny_llama(tmp_path)
    a, b, c = (dict(lora_layers(build(source, LoraConfig(), seed))) for seed in (3, 3, 4))
    name = "layers.1.attention.v_proj"
    assert torch.equal(a[name].lora_a, b[name].lora_a)
    assert not torch.equal(a[name].lora_a, c[name].lora_a)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        *((family, LoraConfig(rank=4, alpha=8)) for family in FAMILIES),
        ("llama", LoraConfig(rank=4, rank_stabilized=True, targets=("q_proj", "up_proj"))),
    ],
    ids=str,
)
def test_merged_equals_unmerged_and_peft(family, lora, tmp_path):
    source = write_tiny_model(tmp_path / "source", family)
    model = trained(source, lora)
    want = logits(model)
    assert (want - logits(build(source))).abs().max() > 0.1

    save_model(model, tmp_path / "merged", source, torch.float32)
    torch.testing.assert_close(logits(build(tmp_path / "merged")), want, rtol=1e-4, atol=1e-4)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(reference_logits(merged), want, rtol=1e-4, atol=1e-4)

    save_adapter(model, tmp_path / "adapter", str(source))
    base = transformers.AutoModelForCausalLM.from_pretrained(source)
    with_peft = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(reference_logits(with_peft), want, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_continued_or_merged(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    lora = LoraConfig(rank=4)
    model = trained(source, lora)
    save_adapter(model, tmp_path / "adapter", "../source")
    continued = build(tmp_path / "adapter", LoraConfig(rank=4, dropout=0.5))
    assert torch.equal(logits(continued), logits(model))
    torch.testing.assert_close(logits(build(tmp_path / "adapter")), logits(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"rank 4.*lora asks for rank 8"):
        build(tmp_path / "adapter", LoraConfig(rank=8))


def test_dropout_is_only_in_training(tmp_path):
    model = trained(write_tiny_llama(tmp_path), LoraConfig(dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_a_model_with_experts_has_adapters_on_attention_only(tmp_path):
    source = write_tiny_model(tmp_path, "qwen3_moe")
    assert build(source, LoraConfig()).lora.targets == ATTENTION_TARGETS
    with pytest.raises(UserError, match=r"up_proj: a model with experts has adapters on attention only; use q_proj"):
        build(source, LoraConfig(targets=("q_proj", "up_proj")))


def test_unknown_targets_are_named_with_the_known_ones():
    with pytest.raises(UserError) as raised:
        LoraConfig(targets=("q_proj", "wq"))
    assert "lora.targets: wq" in str(raised.value) and ", ".join(TARGETS) in str(raised.value)


def test_adapters_of_other_kinds_and_models_are_refused(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    folder = tmp_path / "adapter"
    save_adapter(trained(source, LoraConfig(rank=4)), folder, str(source))
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"use_dora": True}))
    with pytest.raises(UserError, match=r"use_dora: True is not supported"):
        build(folder)
    deeper = write_tiny_llama(tmp_path / "deeper", num_hidden_layers=3)
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": str(deeper)}))
    with pytest.raises(UserError, match=r"does not fit its base model.*layers.2.*missing"):
        build(folder)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_layers_of_one_input_together_do_what_each_does_alone(dropout):
    torch.manual_seed(0)
    config = LoraConfig(rank=3, dropout=dropout)
    layers = [LoraLinear(torch.nn.Linear(8, size, bias=True), config) for size in (6, 4)]
    layers.insert(1, torch.nn.Linear(8, 5).requires_grad_(False))  # one without an adapter
    for layer in (layers[0], layers[2]):
        torch.nn.init.normal_(layer.lora_b)
    weights = [layer.lora_a for layer in layers if isinstance(layer, LoraLinear)]
    x = torch.randn(2, 7, 8, requires_grad=True)

    def outcome(outputs):
        gradients = torch.autograd.grad(sum(out.sin().sum() for out in outputs), [x, *weights])
        return [*outputs, *gradients]

    torch.manual_seed(1)
    together = outcome(project(x, *layers))
    torch.manual_seed(1)
    apart = outcome([layer(x) for layer in layers])
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)

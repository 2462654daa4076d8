"""The verifier fails when the decoder is wrong. That it passes on every family is for families_test to show."""

import dataclasses
import subprocess
import sys

import pytest

from finecut.trainer.models import logits, verify
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.rope_config import LinearScaling
from finecut.trainer.testing import LLAMA3_ROPE, write_tiny_llama, write_tiny_model


def is_equal(folder) -> bool:
    return all(check.is_equal for check in verify.verify(folder, seed=1, gradients=False))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: {"rope": dataclasses.replace(c.rope, scaling=None)},
        lambda c: {"rope": dataclasses.replace(c.rope, theta=20_000.0)},
        lambda c: {"rope": dataclasses.replace(c.rope, scaling=LinearScaling(8.0))},
        lambda c: {"norm_epsilon": 0.1},
    ],
    ids=["scaling", "theta", "kind", "epsilon"],
)
def test_a_wrong_llama_is_found(wrong, tmp_path, monkeypatch):
    check_wrong(write_tiny_llama(tmp_path, rope_parameters=LLAMA3_ROPE), wrong, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: {"local": dataclasses.replace(c.local, window=c.local.window + 1)},
        lambda c: {"local": dataclasses.replace(c.local, layers=(0, 1, 2))},
        lambda c: {"local": dataclasses.replace(c.local, rope=c.rope)},
        lambda c: {"attention_scale": None},
        lambda c: {"logit_soft_cap": None},
        lambda c: {"norm_plus_one": False},
        lambda c: {"embedding_scale": 1.0},
    ],
    ids=["window", "layers", "local-rope", "scale", "cap", "norms", "embeddings"],
)
def test_a_wrong_gemma_is_found(wrong, tmp_path, monkeypatch):
    check_wrong(write_tiny_model(tmp_path, "gemma3_text"), wrong, monkeypatch)


@pytest.mark.parametrize("wrong", [{"normalized": False}, {"chosen": 1}], ids=str)
def test_a_wrong_mixture_is_found(wrong, tmp_path, monkeypatch):
    folder = write_tiny_model(tmp_path, "qwen3_moe")
    check_wrong(folder, lambda c: {"experts": dataclasses.replace(c.experts, **wrong)}, monkeypatch)


def check_wrong(folder, wrong, monkeypatch):
    right = DecoderConfig.from_folder(folder)
    monkeypatch.setattr(logits.DecoderConfig, "from_folder", lambda _: dataclasses.replace(right, **wrong(right)))
    assert not is_equal(folder)


def test_documents_that_leak_into_each_other_are_found(tmp_path, monkeypatch):
    source = write_tiny_llama(tmp_path)
    honest = logits.Decoder.forward

    def leak(self, input_ids, position_ids, document_ids, *targets):
        return honest(
            self, input_ids, position_ids.new_tensor(range(input_ids.shape[1]))[None], document_ids * 0, *targets
        )

    monkeypatch.setattr(logits.Decoder, "forward", leak)
    assert not is_equal(source)


def test_a_gradient_that_is_lost_is_found(tmp_path, monkeypatch):
    """The forward pass is right."""
    source = write_tiny_llama(tmp_path)
    honest = logits.Decoder.forward

    def lose(self, *arguments):
        self.layers[1].attention.k_proj.weight.requires_grad_(False)
        found = honest(self, *arguments)
        self.layers[1].attention.k_proj.weight.requires_grad_(True).grad = None
        return found

    monkeypatch.setattr(logits.Decoder, "forward", lose)
    gradients, *others = verify.verify(source, seed=1)
    assert all(check.is_equal for check in others) and not gradients.is_equal


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, verify.__file__, *arguments], capture_output=True, text=True, timeout=300)


def test_binary_says_equal_or_what_is_wrong(tmp_path):
    done = run(f"--model={write_tiny_llama(tmp_path / 'model')}")
    assert done.returncode == 0 and done.stdout.count("  equal\n") == 3 and "NOT EQUAL" not in done.stdout
    wrong = run(f"--model={tmp_path / 'nothing'}")
    assert wrong.returncode == 2 and "no such folder" in wrong.stderr and "Traceback" not in wrong.stderr

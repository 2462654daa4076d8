"""The verifier passes on every variant of the family and fails when the decoder is wrong."""

import dataclasses
import subprocess
import sys

import pytest

from finecut.trainer.models import logits, verify
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.rope import LinearScaling
from finecut.trainer.testing import LLAMA3_ROPE, write_tiny_llama


@pytest.mark.parametrize(
    "fields",
    [{}, {"rope_parameters": LLAMA3_ROPE}, {"tie_word_embeddings": True}, {"num_key_value_heads": 1}],
    ids=["default", "llama3-rope", "tied", "multi-query"],
)
def test_random_models_are_equal(fields, tmp_path):
    agreement = verify.verify(write_tiny_llama(tmp_path, **fields), seed=1)
    assert agreement.is_equal and agreement.max_difference < 1e-4 * agreement.max_logit
    assert agreement.divergence < 1e-6


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
def test_a_wrong_decoder_is_found(wrong, tmp_path, monkeypatch):
    source = write_tiny_llama(tmp_path, rope_parameters=LLAMA3_ROPE)
    right = DecoderConfig.from_folder(source)
    monkeypatch.setattr(logits.DecoderConfig, "from_folder", lambda _: dataclasses.replace(right, **wrong(right)))
    assert not verify.verify(source, seed=1).is_equal


def test_documents_that_leak_into_each_other_are_found(tmp_path, monkeypatch):
    source = write_tiny_llama(tmp_path)
    honest = logits.Decoder.forward

    def leak(self, input_ids, position_ids, document_ids):
        return honest(self, input_ids, position_ids.new_tensor(range(input_ids.shape[1]))[None], document_ids * 0)

    monkeypatch.setattr(logits.Decoder, "forward", leak)
    assert not verify.verify(source, seed=1).is_equal


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, verify.__file__, *arguments], capture_output=True, text=True, timeout=120)


def test_binary_says_equal_or_what_is_wrong(tmp_path):
    done = run(f"--model={write_tiny_llama(tmp_path / 'model')}")
    assert done.returncode == 0 and done.stdout.startswith("equal: max abs difference")
    wrong = run(f"--model={tmp_path / 'nothing'}")
    assert wrong.returncode == 2 and "no such folder" in wrong.stderr and "Traceback" not in wrong.stderr

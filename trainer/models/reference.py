"""The same model in `transformers`, to be held against ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from finecut.proto.config import UserError


def load_reference(
    folder: Path, device: torch.device | str = "cpu", adapter: Path | None = None, num_labels: int | None = None
) -> Any:
    """The model in `transformers`, with the adapter in `peft` where there is one; weights widened to FP32.

    With `num_labels`, as a model for sequence classification. Raises UserError when the libraries cannot load it.
    """
    with quiet():
        try:
            if num_labels is None:
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            else:
                model = transformers.AutoModelForSequenceClassification.from_pretrained(
                    folder, num_labels=num_labels, dtype=torch.float32
                )
            if adapter:
                import peft  # takes a second to import, and only adapters need it

                model = peft.PeftModel.from_pretrained(model, adapter)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"{adapter or folder}: transformers cannot load it: {error}") from None
    return model.to(device).eval()


@torch.no_grad()
def reference_logits(reference: Any, documents: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each document run by itself, without padding: [length, vocabulary], FP32, on the CPU.

    Of a model for sequence classification [1, labels], of the last token.
    """
    found = [reference(document[None].to(reference.device)).logits[0].float().cpu() for document in documents]
    return [logits if logits.ndim == 2 else logits[None] for logits in found]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and advice of `transformers`, which mean nothing to users of a job."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

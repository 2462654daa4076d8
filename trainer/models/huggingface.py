"""Hugging Face weights in and out: the one module that recipes import."""

from finecut.trainer.models.adapter import save_adapter
from finecut.trainer.models.load import materialize
from finecut.trainer.models.save import save_model
from finecut.trainer.models.source import ModelSource, locate_model

__all__ = ["ModelSource", "locate_model", "materialize", "save_adapter", "save_model"]

"""The families that the decoder covers. A new one is a file in this folder and a line here."""

from __future__ import annotations

from finecut.trainer.models.families import llama
from finecut.trainer.models.families.family import Family

FAMILIES: dict[str, Family] = {family.model_type: family for family in (llama.FAMILY,)}

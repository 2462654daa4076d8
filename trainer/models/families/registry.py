"""The families that the decoder covers. A new one is a file in this folder and a line here."""

from __future__ import annotations

from finecut.trainer.models.families import gemma3, llama, mistral, qwen2, qwen3, qwen3_moe
from finecut.trainer.models.families.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        gemma3.FAMILY,
        llama.FAMILY,
        mistral.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        qwen3_moe.FAMILY,
    )
}

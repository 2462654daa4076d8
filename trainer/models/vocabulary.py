"""Makes room in a model's vocabulary for new tokens and for semantic ids.

    0 .. the tokenizer's own tokens .. added tokens .. semantic ids .. spare rows of the source, where it had more

An id is a row: token ids are the tokenizer's, and semantic id i is the tokenizer's new length + i.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from finecut.dataprep import tokenization
from finecut.proto.config import UserError
from finecut.trainer.models.architecture import NewRows
from finecut.trainer.models.config import DecoderConfig


def grow(config: DecoderConfig, tokenizer: Path, added_tokens: Sequence[str], semantic_ids: int) -> DecoderConfig:
    """The config with the new rows.

    Args:
      tokenizer: folder of the model's tokenizer, which does not have the tokens yet.
      semantic_ids: how many the model shall have; 0, or as many as it has, changes nothing.

    Raises UserError when the tokenizer has one of the tokens, and when a model with semantic ids is to have others, or
    tokens: either would move the ids that it has.
    """
    missing = semantic_ids if semantic_ids != config.semantic_id_count else 0
    if not added_tokens and not missing:
        return config
    if config.semantic_id_count:
        field = "semantic_id_count" if missing else "added_tokens"
        raise UserError(
            f"model.{field}: the model has {config.semantic_id_count} semantic ids already, which would change; unset"
            " it, or start from the model before it had them"
        )
    num_tokens = len(tokenization.load(tokenizer, needs_template=False))
    grown = tokenization.load(tokenizer, needs_template=False, added_tokens=added_tokens)
    end = len(grown) + missing
    return dataclasses.replace(
        config,
        vocabulary_size=max(config.vocabulary_size, end),
        semantic_id_count=missing,
        new_rows=NewRows(stored=config.vocabulary_size, begin=num_tokens, end=end),
    )

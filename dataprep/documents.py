"""What flows between the steps of data preparation."""

import hashlib
from dataclasses import dataclass

import numpy as np

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Document:
    """One tokenized conversation of T tokens.

    loss_mask_T: True where the token is a target, that is, predicted from the tokens before it; never the first token.
    """

    input_ids_T: np.ndarray  # int32
    loss_mask_T: np.ndarray  # bool
    truncated: bool = False
    later_piece: bool = False  # it continues a longer document that was split

    def __len__(self) -> int:
        return len(self.input_ids_T)


def digest_of_ids(ids_T: np.ndarray) -> bytes:
    """Equal for equal token ids. Whoever compares documents compares these: what a template trims is no difference."""
    return hashlib.blake2b(ids_T.astype(np.int32, copy=False).tobytes(), digest_size=DIGEST_BYTES).digest()

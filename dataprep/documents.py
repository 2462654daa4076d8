"""What flows between the steps of data preparation."""

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from finecut.proto.config import UserError

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Pair:
    """What is known of two answers to one prompt, which are two documents that stay together."""

    rejected_start: int  # first token of the prompt with the rejected answer; before it stands that with the chosen one
    margin: float | None = None  # by how much the chosen one is better, in reward units


@dataclass(frozen=True)
class Task:
    """What a prompt's rollouts are judged by."""

    source: str  # name in the job file
    reference: str | None = None  # the answer that verifiers compare with
    verifier: str | None = None  # None: the recipe's


@dataclass(frozen=True)
class Document:
    """What is packed as a whole: one tokenized conversation or text of T tokens, or a preference pair, which is two.

    loss_mask_T: True where the token is a target, that is, predicted from the tokens before it; never a first token.
    """

    input_ids_T: np.ndarray  # int32
    loss_mask_T: np.ndarray  # bool
    truncated: bool = False
    later_piece: bool = False  # it continues a longer document that was split
    earlier_turn: bool = False  # a conversation up to a turn that the chat template rewrites once it is history
    example_id: int = 0  # see `example_id`; 0: none
    pair: Pair | None = None  # of preference pairs only
    task: Task | None = None  # of prompts only, in which nothing is a target
    signature: np.ndarray | None = None  # uint32; of its words, where near-duplicates are looked for

    def __len__(self) -> int:
        return len(self.input_ids_T)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document in it: one, or of a pair two."""
        if self.pair is None:
            return (len(self),)
        return self.pair.rejected_start, len(self) - self.pair.rejected_start

    @property
    def starts(self) -> tuple[int, ...]:
        """First token of each document in it."""
        return (0,) if self.pair is None else (0, self.pair.rejected_start)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first target."""
        return int(self.loss_mask_T.argmax()) if self.loss_mask_T.any() else len(self)

    def digest(self) -> bytes:
        """Equal for equal tokens, whatever is trained of them."""
        digest = digest_of_ids(self.input_ids_T)
        return digest if self.pair is None else _digest(digest + self.pair.rejected_start.to_bytes(4, "little"))


def example_id(document: Document) -> int:
    """Names an example for good: 64 bits (signed) of the digest of its tokens, before it is cut or split.

    It depends on content and tokenizer alone, so it is the same in every preparation, order and packing, and two
    examples of equal content have the same one. Among a million examples two others share one with odds of 1 in 37
    million.
    """
    return int.from_bytes(document.digest()[:8], "little", signed=True)


def show_example_id(number: int) -> str:
    """As people read and search it: 16 hexadecimal digits."""
    return f"{number % 2**64:016x}"


def parse_example_id(text: str) -> int:
    """The id that `show_example_id` shows. Raises UserError."""
    if not re.fullmatch(r"[0-9a-fA-F]{16}", text):
        raise UserError(f"example id {text!r}: it has 16 hexadecimal digits, as in the report")
    return int.from_bytes(bytes.fromhex(text), "big", signed=True)


def digest_of_ids(ids_T: np.ndarray) -> bytes:
    """Equal for equal token ids. Whoever compares documents compares these: what a template trims is no difference."""
    return _digest(ids_T.astype(np.int32, copy=False).tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()

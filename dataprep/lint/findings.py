"""What the linter found: everything counted, the first few kept with the text that shows them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.proto.config import UserError

# A longer list is not read; counts say how many there are.
MAX_LISTED = 20
# Tokens shown on each side of the place.
_CONTEXT = 12


@dataclass(frozen=True)
class Finding:
    """One breach of a rule. Block and document count from 0; None where the rule is about the whole split."""

    rule: str
    reason: str
    split: str
    block: int | None = None
    document: int | None = None
    excerpt: str = ""

    def __str__(self) -> str:
        where = self.split
        if self.block is not None:
            inside = "padding" if self.document is None else f"document {self.document}"
            where += f" block {self.block:,}, {inside}"
        return f"{where}: {self.reason}" + (f": {self.excerpt}" if self.excerpt else "")


class Findings:
    """Collects findings of any number in bounded memory."""

    def __init__(self) -> None:
        self.listed: list[Finding] = []
        self.count_by_rule: Counter[str] = Counter()

    def __len__(self) -> int:
        return self.count_by_rule.total()

    @property
    def wants_more(self) -> bool:
        """Whether the next finding is kept; it need not be described otherwise."""
        return len(self.listed) < MAX_LISTED

    def add(self, finding: Finding) -> None:
        if self.wants_more:
            self.listed.append(finding)
        self.count_by_rule[finding.rule] += 1

    def count(self, rule: str, number: int) -> None:
        """Findings that are not kept."""
        self.count_by_rule[rule] += number

    def check(self) -> None:
        """Raises UserError where there is any."""
        if self.listed:
            counts = ", ".join(f"{rule} {count:,}" for rule, count in self.count_by_rule.items())
            raise UserError(
                f"the prepared data must not be trained on: {len(self):,} findings ({counts})\n{self.listing()}"
            )

    def listing(self) -> str:
        """One a line, and how many more there are."""
        more = [f"... and {len(self) - len(self.listed):,} more"] if len(self) > len(self.listed) else []
        return "\n".join(f"  {line}" for line in [*map(str, self.listed), *more])


def excerpt(ids_T: np.ndarray, place: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text around a token, which stands in ⟦ ⟧; ids that the tokenizer does not have are shown as numbers."""
    start, end = max(0, place - _CONTEXT), min(len(ids_T), place + _CONTEXT + 1)
    before, token, after = (
        decode(ids_T[a:b], tokenizer) for a, b in ((start, place), (place, place + 1), (place + 1, end))
    )
    ellipses = ("..." if start else "", "..." if end < len(ids_T) else "")
    text = f"{ellipses[0]}{before}⟦{token}⟧{after}{ellipses[1]}"
    return text.replace("\n", "⏎")


def decode(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of ids, with those outside the vocabulary as ⟨id⟩."""
    size = len(tokenizer)
    known = [0 <= number < size for number in ids.tolist()]
    if all(known):
        return tokenizer.decode(ids.tolist())
    return "".join(
        tokenizer.decode([number]) if is_known else f"⟨{number}⟩"
        for number, is_known in zip(ids.tolist(), known, strict=True)
    )

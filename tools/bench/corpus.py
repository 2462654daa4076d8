"""Synthetic conversations: words of Zipf's frequencies, log-normal lengths, equal for equal arguments."""

import json
from pathlib import Path

import numpy as np

# Zipf's law with this many words gives about the share of rare words of English prose.
NUM_WORDS = 50_000
_SYLLABLES = [a + b for a in "bcdfghjklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "on", "ar")]
_MOST_WORDS = 5_000


def write(path: Path, num_records: int, median_words: int, seed: int = 0) -> None:
    """JSONL of `num_records` conversations of one or two exchanges; the lengths' logarithm has deviation 1."""
    random = np.random.default_rng(seed)
    words = np.array(_words(random))
    shares: np.ndarray = 1 / np.arange(1, NUM_WORDS + 1)
    cumulative = np.cumsum(shares / shares.sum())
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_records):
            length = int(np.clip(random.lognormal(np.log(median_words), 1), 4, _MOST_WORDS))
            said = words[np.minimum(np.searchsorted(cumulative, random.random(length)), NUM_WORDS - 1)].tolist()
            exchanges = 1 if length < 40 else int(random.integers(1, 3))
            messages = []
            for number in range(exchanges):
                part = said[number * length // exchanges : (number + 1) * length // exchanges]
                question, answer = part[: len(part) // 4 or 1], part[len(part) // 4 or 1 :]
                messages.append({"role": "user", "content": _sentence(question) + "?"})
                messages.append({"role": "assistant", "content": _sentence(answer) + "."})
            file.write(json.dumps({"messages": messages}) + "\n")


def _words(random: np.random.Generator) -> list[str]:
    """Different words, the frequent ones short."""
    found: dict[str, None] = {}
    while len(found) < NUM_WORDS:
        num_syllables = 1 + min(4, int(np.log10(len(found) + 1)))
        found["".join(_SYLLABLES[index] for index in random.integers(0, len(_SYLLABLES), num_syllables))] = None
    return list(found)


def _sentence(words: list[str]) -> str:
    """A capital first, and a comma behind every ninth word."""
    text = " ".join(word + "," if number % 9 == 8 else word for number, word in enumerate(words))
    return text[:1].upper() + text[1:]

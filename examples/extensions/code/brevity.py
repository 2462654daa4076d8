"""A reward: 1 for an answer of one short sentence."""

from finecut.trainer.rewards.answer import Answer


def reward(answer: Answer) -> float:
    """`answer.text`, `answer.prompt`, `answer.reference` and `answer.record` are what it can look at."""
    return float(len(answer.text.split()) <= 8 and answer.text.rstrip().endswith("."))

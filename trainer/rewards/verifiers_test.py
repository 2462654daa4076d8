"""Verifiers: right, wrong, and what cannot be judged."""

from __future__ import annotations

import pytest

from finecut.proto.config import UserError
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.rewards.verifiers import (
    ExactMatchVerifier,
    NumericVerifier,
    OverlongPunishment,
    RegularExpressionVerifier,
    Verifier,
)


def judge(verifier: Verifier, text: str, reference: str | None = None) -> float | Unscored:
    (found,) = verifier.score([Answer("maths/1", "?", text, {"reference": reference})])
    return found


def test_exact_match_is_without_case_and_outer_space_unless_told_otherwise() -> None:
    loose, strict = ExactMatchVerifier(normalize=True), ExactMatchVerifier(normalize=False)
    assert judge(loose, " Paris\n", "paris") == 1 and judge(strict, " Paris\n", "paris") == 0
    assert judge(strict, "paris", "paris") == 1 and judge(loose, "Paris.", "paris") == 0


def test_numbers_are_compared_by_value_within_the_tolerance() -> None:
    assert judge(NumericVerifier(1e-6), "so 6 x 7 = 42.0", "42") == 1
    assert judge(NumericVerifier(1e-6), "42.1", "42") == 0
    assert judge(NumericVerifier(0.01), "42.1", "42") == 1
    assert judge(NumericVerifier(1e-6), "I do not know", "42") == 0


@pytest.mark.parametrize("verifier", [ExactMatchVerifier(True), NumericVerifier(1e-6)])
def test_a_record_without_a_reference_cannot_be_judged(verifier: Verifier) -> None:
    found = judge(verifier, "42")
    assert isinstance(found, Unscored) and "reference" in found.reason


def test_a_reference_without_a_number_cannot_be_judged_by_number() -> None:
    assert judge(NumericVerifier(0), "42", "forty-two") == Unscored("its reference 'forty-two' has no number")


def test_an_expression_is_found_anywhere() -> None:
    verifier = RegularExpressionVerifier(r"<answer>\d+</answer>")
    assert judge(verifier, "I think <answer>7</answer>.") == 1 and judge(verifier, "<answer>x</answer>") == 0


def test_an_expression_that_backtracks_without_end_is_cut_short() -> None:
    found = judge(RegularExpressionVerifier(r"^(([a-z])+.)+[A-Z]([a-z])+$"), "a" * 60)
    assert found == 0 or (isinstance(found, Unscored) and "1 s" in found.reason)


@pytest.mark.parametrize(("length", "charged"), [(0, 0), (12, 0), (13, -0.25), (15, -0.75), (16, -1)])
def test_an_answer_is_charged_for_each_token_of_the_buffer(length: int, charged: float) -> None:
    """With 16 tokens at most and a buffer of 4: equation 13 of the DAPO paper."""
    (found,) = OverlongPunishment(16, 4).score([Answer("maths/1", "?", "", {}, answer_ids=(7,) * length)])
    assert found == charged


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(UserError, match="is no regular expression"):
        RegularExpressionVerifier("(")

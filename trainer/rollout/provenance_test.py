"""Samples whose weights are not those that the trainer sent are told from those whose are."""

import dataclasses

from finecut.trainer.rl.testing import make_sample
from finecut.trainer.rollout import provenance

SAMPLE = dataclasses.replace(make_sample(3, 3), policy_versions=(4, 4, 5), weights={4: "aa", 5: "bb"})


def test_a_sample_is_what_every_version_that_it_names_was_when_published() -> None:
    assert provenance.problem([SAMPLE], {3: "00", 4: "aa", 5: "bb"}) is None
    assert provenance.problem([], {}) is None


def test_other_weights_and_versions_that_nobody_sent_are_told() -> None:
    assert "weights bb as policy version 5, and the trainer sent cc" in str(
        provenance.problem([SAMPLE], {4: "aa", 5: "cc"})
    )
    assert "as policy version 4, and the trainer has sent no such version" in str(
        provenance.problem([SAMPLE], {5: "bb"})
    )

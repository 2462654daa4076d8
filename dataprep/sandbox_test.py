"""Templates and expressions of a job file: what they see, and what they may not do."""

from typing import Any

import pytest

from finecut.dataprep import sandbox
from finecut.dataprep.records import RecordError
from finecut.proto.config import UserError


def test_a_template_sees_the_record() -> None:
    render = sandbox.template("{% for x in xs %}{{ x }}, {% endfor %}{{ name | upper }}", "prompt")
    assert render({"xs": [1, 2], "name": "a"}) == "1, 2, A"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ gone }}", "prompt: 'gone' is undefined"),
        ("{{ x.gone }}", "prompt: 'dict object' has no attribute 'gone'"),
        ("{{ x + 1 }}", "prompt: unsupported operand"),
        ("{{ 1 / 0 }}", "prompt: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "prompt: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ x.update({'a': 1}) }}", "prompt: .* unsafe|not safely callable"),
        ("{% for i in range(10000000) %}{% endfor %}", "prompt: Range too big"),
    ],
)
def test_what_a_template_raises_is_about_the_record(text: str, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        sandbox.template(text, "prompt")({"x": {}})


def test_what_is_no_template_or_expression_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"^prompt: not a Jinja template: "):
        sandbox.template("{% for %}", "prompt")
    with pytest.raises(UserError, match=r"^filter.expression: not a Jinja expression: "):
        sandbox.condition("score >", "filter.expression")


@pytest.mark.parametrize(
    ("record", "expected"), [({"score": 3, "self": 1}, True), ({"score": 1}, False), ({"score": 2, "x": "y"}, False)]
)
def test_a_condition_is_true_or_false(record: dict[str, Any], expected: bool) -> None:
    assert sandbox.condition("score > 2", "filter")(record) is expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gone > 2", "'gone' is undefined"),
        ("gone", "'gone' is undefined"),
        ("score", "gives '3', neither true nor false; write a comparison"),
        ("score > 'a'", ".* not supported between"),
    ],
)
def test_a_condition_that_gives_no_answer_is_a_bad_record(text: str, reason: str) -> None:
    with pytest.raises(RecordError, match=f"filter: {reason}"):
        sandbox.condition(text, "filter")({"score": 3})

"""Jinja in a job file: it sees the record and nothing of this program, and a name that is not there is an error."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finecut.dataprep.records import RecordError
from finecut.proto.config import UserError

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)

Template = Callable[[Mapping[str, Any]], str]
Condition = Callable[[Mapping[str, Any]], bool]


def template(text: str, field: str) -> Template:
    """A function from variables to text. Raises UserError, naming the job's `field`, where the text is no template."""
    try:
        compiled = _ENVIRONMENT.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"{field}: not a Jinja template: {error}") from error

    def render(variables: Mapping[str, Any]) -> str:
        try:
            return compiled.render(variables)
        except Exception as error:  # the template is the user's program: whatever it raises is about this record
            raise RecordError(f"{field}: {_describe(error)}") from error

    return render


def condition(text: str, field: str) -> Condition:
    """A function from variables to true or false. Raises UserError where the text is no expression."""
    try:
        compiled = _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    except jinja2.TemplateError as error:
        raise UserError(f"{field}: not a Jinja expression: {error}") from error

    def holds(variables: Mapping[str, Any]) -> bool:
        try:
            value = compiled(variables)
            if isinstance(value, jinja2.Undefined):
                bool(value)  # raises, and says which name it is
        except Exception as error:  # as in a template
            raise RecordError(f"{field}: {_describe(error)}") from error
        if not isinstance(value, bool):
            raise RecordError(f"{field}: gives {str(value)[:40]!r}, neither true nor false; write a comparison")
        return value

    return holds


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

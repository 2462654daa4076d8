"""Code of the user's that a job names by import path, "package.module:name": how it is found and checked."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from finecut.proto.config import UserError


def load(path: str, field: str, num_arguments: int) -> Callable[..., Any]:
    """Imports "package.module:name", which can be called with so many positional arguments.

    Raises UserError, naming the job's `field`, when there is no such thing.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"{field}: {path!r} must have the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code runs here, and may raise anything
        raise UserError(f"{field}: {path!r}: importing {module_name} failed: {told(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{field}: {path!r}: {module_name} has no class or function {name!r}")
    _check_arguments(found, path, field, num_arguments)
    return found


def told(error: BaseException) -> str:
    """An exception of user code in one line: where it was raised, its type and its first line."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}: " if place is not None else ""
    lines = str(error).strip().splitlines()
    return f"{where}{type(error).__name__}" + (f": {lines[0]}" if lines else "")


def _check_arguments(found: Callable[..., Any], path: str, field: str, count: int) -> None:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of some built-in functions nothing is known
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise UserError(
            f"{field}: {path!r} is called with {count} argument{'s' * (count != 1)}, and takes {signature}: {error}"
        ) from error

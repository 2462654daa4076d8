"""A task of the user's: a function "package.module:name" of the loaded model and the folder of its data.

    def politeness(model: AskedModel, data: Path | None) -> Mapping[str, Sequence[float]]:
        answers = model.answer(["May I come in?", "Where is it?"])
        return {"politeness": [float("please" in answer.lower()) for answer in answers]}

Each metric is a number for each example, which is what intervals are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finecut.proto.config import UserError
from finecut.proto.run import user_code
from finecut.trainer.evaluate.answers import AskedModel
from finecut.trainer.evaluate.config import UserTask
from finecut.trainer.evaluate.scores import Scores

_FIELD = "evaluate.tasks.python"


def run(how: UserTask, task: str, model: AskedModel) -> list[Scores]:
    """Calls the function. Raises UserError for what it raises, and for anything but numbers of examples."""
    function = user_code.load(how.path, _FIELD, num_arguments=2)
    try:
        found = function(model, how.data)
    except Exception as error:  # user code runs here, and may raise anything
        raise UserError(f"{_FIELD}: {how.path!r} failed: {user_code.told(error)}") from error
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{_FIELD}: {how.path!r} returned {type(found).__name__}; return numbers of examples by metric")
    return [_scores(how.path, task, metric, values) for metric, values in found.items()]


def _scores(path: str, task: str, metric: str, values: Sequence[float]) -> Scores:
    try:
        values_N = np.asarray(values, float)
    except (TypeError, ValueError):
        values_N = np.empty(0)
    if values_N.ndim != 1 or not len(values_N):
        raise UserError(f"{_FIELD}: {path!r}: {metric} must be a list with a number for each example")
    return Scores(task, metric, tuple(map(str, range(len(values_N)))), values_N)

"""Shows an example of prepared data by its id, as metrics and the report name it.

    bazel run //dataprep:find_example -- --artifact=RUN/stages/prepare/artifact --example=00c0ffee00c0ffee

Prints where each document of the example stands and what it says, with what is trained in ⟦ ⟧: the text leads back to
the record. Exit codes: 0 found, 2 not found or invalid input.
"""

import sys
from pathlib import Path

from absl import app, flags

from finecut.dataprep.examples import find
from finecut.proto.config import UserError

_ARTIFACT = flags.DEFINE_string("artifact", None, "Folder of a data_prep stage's artifact.", required=True)
_EXAMPLE = flags.DEFINE_string("example", None, "Example id: 16 hexadecimal digits.", required=True)


def main(arguments: list[str]) -> int:
    try:
        if arguments[1:]:
            raise UserError(f"unexpected argument {arguments[1]!r}")
        found = list(find(Path(_ARTIFACT.value), _EXAMPLE.value))
        if not found:
            raise UserError(f"--example: no document of {_ARTIFACT.value} has the id {_EXAMPLE.value}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(found))
    return 0


if __name__ == "__main__":
    app.run(main)

"""Imports what a node needs; run while the image is built. `python -m finecut.tools.image.check_node`."""

from __future__ import annotations

import importlib
import sys

# By what breaks without it. Compiled against each other, so that importing is what shows a mismatch.
NEEDED = ("torch", "transformers", "safetensors", "vllm", "ray", "pyarrow", "dbos")
# From the base image only: the kernels choose others where it is missing.
OPTIONAL = ("apex",)


def main() -> int:
    """Prints what was found; 1 where something needed is missing."""
    problems = []
    for name in (*NEEDED, *OPTIONAL):
        try:
            module = importlib.import_module(name)
            print(f"{name} {getattr(module, '__version__', '')}".strip())
        except (ImportError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            if name in NEEDED:
                problems.append(name)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

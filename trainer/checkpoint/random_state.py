"""Seeds, captures and restores every random generator of one rank: Python's, NumPy's, torch's and CUDA's.

A captured state holds plain values and tensors only, so that reading one back runs no code.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed(seed: int, rank: int, step: int = 0) -> None:
    """Seeds every generator from all three numbers: ranks must not share dropout masks, nor a run repeat them."""
    mixed = int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0])
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)  # CUDA's too


def capture() -> dict[str, Any]:
    """State of all generators."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts every generator back to a captured state. A CUDA state is left out on a host without a GPU."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

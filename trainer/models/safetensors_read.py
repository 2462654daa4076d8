"""Reads slices of tensors from a folder of safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finecut.proto.config import UserError


class TensorFolder:
    """The tensors of a model folder, by name. Files are mapped, so only what is asked for is read.

    Raises UserError for files that are missing or torn.
    """

    def __init__(self, folder: Path, file_name: str = "model.safetensors") -> None:
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._file_of = self._read_names(file_name)

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """The box of `size` that begins at `offset`, on the CPU and in the file's own type."""
        if math.prod(size) == 0:
            return torch.empty(tuple(size))
        return self._slice(name)[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]

    def _slice(self, name: str) -> Any:
        return self._open(self._file_of[name]).get_slice(name)

    def _open(self, file_name: str) -> Any:
        if file_name not in self._files:
            path = self.folder / file_name
            try:
                self._files[file_name] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise UserError(f"{path}: no such file; the model folder is not complete") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
        return self._files[file_name]

    def _read_names(self, file_name: str) -> dict[str, str]:
        index = self.folder / f"{file_name}.index.json"
        if not index.exists():
            if not (self.folder / file_name).exists():
                raise UserError(f"{self.folder}: neither {file_name} nor {index.name} is there")
            return dict.fromkeys(self._open(file_name).keys(), file_name)
        try:
            file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index}: not a readable index ({error!r}); fetch it again") from None
        held = {file: set(self._open(file).keys()) for file in set(file_of.values())}
        for name, file in file_of.items():
            if name not in held[file]:
                raise UserError(f"{index}: {name} is said to be in {file}, which does not hold it")
        return file_of

"""Tensors come back whole, however many files they were spread over, and digests are those of the files."""

from pathlib import Path

import pytest
import torch

from finecut.trainer.checkpoint import manifest, tensor_files
from finecut.trainer.checkpoint.location import Folder


@pytest.mark.parametrize("num_files", [1, 3])
def test_tensors_come_back_and_digests_are_of_the_files(num_files: int, tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.randn(number + 1, 300) for number in range(8)}
    place = Folder(tmp_path)
    digests = tensor_files.save(dict(tensors), place, "step/tensors", None, num_files)
    assert len(list((tmp_path / "step" / "tensors").glob("*.distcp"))) == num_files
    assert manifest.damage(place, ".", digests) is None
    assert {path.name for path in (tmp_path / "step" / "tensors").iterdir()} == {Path(path).name for path in digests}
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    tensor_files.load(found, place, "step/tensors", None)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())

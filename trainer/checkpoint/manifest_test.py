"""Which checkpoint folders count, and which are kept."""

import io
from functools import partial
from pathlib import Path

import pytest

from finecut.trainer.checkpoint import manifest
from finecut.trainer.checkpoint.location import Folder


def write(root: Path, step: int) -> str:
    folder = manifest.folder_of(step)
    contents = {"state/weights.bin": b"w" * step, "train_state.json": b"{}"}
    for path, content in contents.items():
        with Folder(root).create(f"{folder}/{path}") as file:
            file.write(content)
    digests = {path: manifest.digest_of(io.BytesIO(content)) for path, content in contents.items()}
    manifest.finish(Folder(root), folder, digests)
    return folder


def newest_whole(root: Path) -> tuple[str | None, list[str]]:
    place = Folder(root)
    return manifest.newest_whole(
        manifest.candidates(place), partial(manifest.read, place), partial(manifest.damage, place)
    )


def steps(root: Path) -> list[int]:
    return [manifest.step_of(folder) for folder in manifest.candidates(Folder(root))]


def test_newest_whole_checkpoint_is_chosen(tmp_path):
    write(tmp_path, 5)
    newest = write(tmp_path, 10)
    assert newest_whole(tmp_path) == (newest, [])
    assert newest_whole(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize(
    "path, reason",
    [
        ("manifest.json", "it was not finished"),
        ("state/weights.bin", "state/weights.bin is missing"),
    ],
)
def test_checkpoint_with_a_missing_file_is_passed_over(tmp_path, path, reason):
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    (tmp_path / newer / path).unlink()
    assert newest_whole(tmp_path) == (older, [f"checkpoint step-00000010 is passed over: {reason}"])


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"w" * 9 + b"x", "state/weights.bin is damaged"),
        (b"w" * 9, "state/weights.bin has 9 bytes instead of 10"),
    ],
    ids=["flipped", "shortened"],
)
def test_checkpoint_with_another_content_is_passed_over(tmp_path, content, reason):
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    (tmp_path / newer / "state" / "weights.bin").write_bytes(content)
    assert newest_whole(tmp_path) == (older, [f"checkpoint step-00000010 is passed over: {reason}"])


def test_manifest_that_differs_in_any_bit_is_not_one(tmp_path):
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    path = tmp_path / newer / manifest.MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert newest_whole(tmp_path)[0] == older, place
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert newest_whole(tmp_path)[0] == older, length
    path.write_bytes(whole)
    assert newest_whole(tmp_path) == (newer, [])


def test_ranks_together_look_at_every_file(tmp_path):
    newer = write(tmp_path, 10)
    digests, reason = manifest.read(Folder(tmp_path), newer)
    assert (len(digests), reason) == (2, None)
    for path in digests:
        (tmp_path / newer / path).unlink()
    found = [manifest.damage(Folder(tmp_path), newer, digests, share, 2) for share in range(2)]
    assert sorted(map(str, found)) == ["state/weights.bin is missing", "train_state.json is missing"]


def test_prune_keeps_the_newest_and_the_multiples(tmp_path):
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step)
    manifest.prune(Folder(tmp_path), keep_last=2, keep_every_steps=20)
    assert steps(tmp_path) == [50, 40, 20]
    manifest.prune(Folder(tmp_path), keep_last=1, keep_every_steps=None)
    assert steps(tmp_path) == [50]


def test_prune_counts_only_finished_ones_and_clears_old_torn_ones(tmp_path):
    for step in (10, 20, 30, 40):
        write(tmp_path, step)
    for torn in (20, 40):
        (tmp_path / manifest.folder_of(torn) / manifest.MANIFEST).unlink()
    manifest.prune(Folder(tmp_path), keep_last=1, keep_every_steps=None)
    assert steps(tmp_path) == [40, 30]  # 40 may be one that is being written

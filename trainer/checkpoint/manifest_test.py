"""Which checkpoint folders count, and which are kept."""

from pathlib import Path

import pytest

from finecut.trainer.checkpoint import manifest


def write(root: Path, step: int) -> Path:
    folder = manifest.folder_of(root, step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "weights.bin").write_bytes(b"w" * step)
    (folder / "train_state.json").write_text("{}")
    manifest.finish(folder, manifest.hashes(folder))
    return folder


def steps(root: Path) -> list[int]:
    return [manifest.step_of(folder) for folder in manifest.candidates(root)]


def test_newest_whole_checkpoint_is_chosen(tmp_path):
    write(tmp_path, 5)
    newest = write(tmp_path, 10)
    assert manifest.newest_whole(tmp_path) == (newest, [])
    assert manifest.newest_whole(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize(
    "path, reason",
    [
        ("manifest.json", "it was not finished"),
        ("state/weights.bin", "state/weights.bin is missing"),
    ],
)
def test_checkpoint_with_a_missing_file_is_passed_over(tmp_path, path, reason):
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    (newer / path).unlink()
    assert manifest.newest_whole(tmp_path) == (older, [f"checkpoint step-00000010 is passed over: {reason}"])


def test_checkpoint_with_a_flipped_byte_is_passed_over(tmp_path):
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    (newer / "state" / "weights.bin").write_bytes(b"w" * 9 + b"x")
    folder, sentences = manifest.newest_whole(tmp_path)
    assert folder == older
    assert sentences == ["checkpoint step-00000010 is passed over: state/weights.bin is damaged"]


def test_torn_manifest_is_passed_over(tmp_path):
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    text = (newer / manifest.MANIFEST).read_text()
    (newer / manifest.MANIFEST).write_text(text[: len(text) // 2])
    assert manifest.newest_whole(tmp_path)[0] == older


def test_ranks_together_hash_every_file(tmp_path):
    folder = write(tmp_path, 5)
    shares = manifest.hashes(folder, 0, 2) | manifest.hashes(folder, 1, 2)
    assert shares == manifest.hashes(folder)
    assert len(shares) == 2


def test_prune_keeps_the_newest_and_the_multiples(tmp_path):
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step)
    manifest.prune(tmp_path, keep_last=2, keep_every_steps=20)
    assert steps(tmp_path) == [50, 40, 20]
    manifest.prune(tmp_path, keep_last=1, keep_every_steps=None)
    assert steps(tmp_path) == [50]

"""Runs the test file named first on the command line under pytest, with what every test needs set up."""

import os
import sys
import tempfile


def main() -> int:
    scratch = os.environ.get("TEST_TMPDIR") or tempfile.mkdtemp()
    # Libraries keep caches in the home folder, which a sandbox does not have.
    os.environ["HOME"] = scratch
    # No test asks a hub or a usage collector for anything.
    os.environ.update(HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    # A test has about one core; more threads only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import pytest

    arguments = [*sys.argv[1:], "-p", "no:cacheprovider", "--import-mode=importlib", "-q", "--basetemp"]
    # Unix sockets have short paths: Ray's sessions live below the temporary folder.
    arguments += [tempfile.mkdtemp(prefix="t")]
    if report := os.environ.get("XML_OUTPUT_FILE"):
        arguments += [f"--junitxml={report}"]
    if chosen := os.environ.get("TESTBRIDGE_TEST_ONLY"):
        arguments += ["-k", chosen]
    return int(pytest.main(arguments))


if __name__ == "__main__":
    sys.exit(main())

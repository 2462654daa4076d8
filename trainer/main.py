"""Runs one training stage of a job file: alone, or as one rank under torchrun.

    bazel run //trainer -- --config=job.textproto --stage=sft
    torchrun --nproc-per-node=8 -m finecut.trainer.main --config=job.textproto --stage=sft

SIGTERM to one rank stops all of them after the step, with a checkpoint.

Exit codes: 0 done (also when the stage was finished already), 1 failed, 2 invalid input, 75 stopped on notice: the same
command goes on from the checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from absl import app, flags, logging

from finecut.proto.config import UserError, load_job
from finecut.trainer import stage, threads
from finecut.trainer.liveness.notice import EXIT_PREEMPTED, Preempted
from finecut.trainer.parallel.leaving import leave

_CONFIG = flags.DEFINE_string("config", None, "Job file, relative to where you stand.", required=True)
_STAGE = flags.DEFINE_string("stage", None, "Name of the stage to run, one that trains or exports.", required=True)
_STORAGE_ROOT = flags.DEFINE_string("storage_root", None, "Folder of runs, instead of the job's storage.root.")
_SET = flags.DEFINE_multi_string("set", [], "PATH=VALUE: sets a field of the job; may be repeated.")


def main(argv: list[str]) -> int:
    threads.prepare()
    try:
        if argv[1:]:
            raise UserError(f"{argv[1]!r} is not a flag; everything is given as --flag=value")
        job = load_job(_CONFIG.value, overrides=_SET.value, storage_root=_STORAGE_ROOT.value)
        artifact = stage.run_stage(job, _STAGE.value)
    except UserError as error:
        return _fail(2, str(error))
    except Preempted as stopped:
        return _fail(EXIT_PREEMPTED, f"{stopped}; run the same command again to go on")
    except KeyboardInterrupt:
        return _fail(1, "interrupted; run the same command again to go on from the last checkpoint")
    except Exception as error:  # whatever it is, the user gets a sentence, and the traceback on request
        logging.vlog(1, "Traceback", exc_info=True)
        return _fail(1, f"{error or type(error).__name__} (--v=1 shows where)")
    if artifact:
        found = {f"{result.task}.{result.metric}": result.value for result in artifact.evaluation.results}
        print(f"stage {artifact.stage}: {_summary(found or artifact.model.metrics)}")
    return 0


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_fail(2, f"{error}; --help lists the flags"))


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _summary(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items())) or "done"


def _as_rank(argv: list[str]) -> int:
    """`main`, and the end of a process that may be one of several."""
    code = main(argv)
    if "WORLD_SIZE" in os.environ:
        leave(code)
    return code


if __name__ == "__main__":
    app.run(_as_rank, flags_parser=_parse_flags)

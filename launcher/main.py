"""Finecut takes a language model from a pretrained checkpoint to a post-trained one, as a job file says.

Usage: bazel run //launcher -- [VERB] [FLAGS]

  run       Run the job of --config, or continue it. The default.
  validate  Check the job of --config; every problem is listed.
  plan      Show stages, order, inputs, outputs, resolved numbers, and what training takes: memory, time, cost.
  status    Show a run (status NAME, or --config), with --watch until it ends; without one, list the runs of
            --storage_root.
  resume    Continue a run (resume NAME, or --config).
  logs      Print what happened in a run (logs NAME, or --config); --follow: until its launcher ends.
  cancel    Stop a run (cancel NAME, or --config) and give back its machines. Its checkpoints stay.
  submit    Hand the job of --config to the service at --server, and return.
  serve     Be that service (see docs/service.md).

With --server=HOST:PORT the verbs ask a service instead, and a job is named by its id there.

Examples:
  bazel run //launcher -- --config=job.textproto
  bazel run //launcher -- plan --config=job.textproto --set stages.sft.sft.training.max_steps=20
  bazel run //launcher -- resume quickstart --storage_root=finecut-runs
  bazel run //launcher -- submit --config=job.textproto --server=jobs.example.org:7400 --certificates=me

Exit codes: 0 done, 1 failed, 2 invalid input, 75 stopped by SIGTERM with a checkpoint (resume goes on from it).
"""

import importlib
import os
import sys
import tempfile
import traceback

from absl import app, flags

from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request
from finecut.launcher.interrupts import Interrupted
from finecut.proto.config import UserError

_CONFIG = flags.DEFINE_string(
    "config", None, "Job file: text format, or YAML by its ending. Relative paths start where you stand."
)
_STORAGE_ROOT = flags.DEFINE_string(
    "storage_root", None, "Folder that holds the runs. Wins over the job's storage.root."
)
_SET = flags.DEFINE_multi_string(
    "set", [], "PATH=VALUE: overrides one field, such as stages.sft.sft.training.max_steps=20. May be repeated."
)
_FORMAT = flags.DEFINE_enum(
    "format", "text", ["text", "json"], "Output for people, or one JSON document on standard output for programs."
)
_HARDWARE = flags.DEFINE_string(
    "hardware", None, "For plan: other devices than this machine's, such as 8xH100, or 8xH100@55.04 (dollars an hour)."
)
_SERVER = flags.DEFINE_string("server", None, "HOST:PORT of a service that does the work instead of this process.")
_CERTIFICATES = flags.DEFINE_string(
    "certificates", None, "Folder of your certificate for --server; unset only for services on this machine."
)
_REQUEST_ID = flags.DEFINE_string(
    "request_id", None, "Name of a submission: sent again with the same name, it makes no second job. Unset: random."
)
_FOLLOW = flags.DEFINE_bool("follow", False, "logs: go on until the run's launcher, or the service's job, has ended.")
_SERVICE_CONFIG = flags.DEFINE_string("service_config", None, "serve: the service's file (ServiceConfig).")
_INSECURE_LOOPBACK = flags.DEFINE_bool(
    "insecure_loopback", False, "serve: without TLS, for one user; every user of this machine can then act as you."
)
_WATCH = flags.DEFINE_bool("watch", False, "With status: stay, and show the run as it goes on.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Print the traceback of an internal error too.")

VERBS = ("run", "validate", "plan", "status", "resume", "logs", "cancel", "submit", "serve")


def main(arguments: list[str]) -> int:
    """Parses, dispatches, and turns errors into sentences and exit codes."""
    output = Output(as_json=_FORMAT.value == "json")
    try:
        request = _request(arguments[1:])
        module = "remote" if request.server else request.verb
        verb = importlib.import_module(f"finecut.launcher.cli.{module}")  # one verb's imports, not all
        return int(verb.main(request, output))
    except UserError as error:
        output.invalid(error)
        return 2
    except BrokenPipeError:  # whoever read our output has stopped; nobody is left to tell
        os._exit(1)
    except (Interrupted, KeyboardInterrupt) as interrupt:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(
            interrupt.exit_code if isinstance(interrupt, Interrupted) else 1
        )  # a stage's thread may wait for ever; everything that must last is on disk
    except Exception as error:
        output.failed(f"internal error: {type(error).__name__}: {error}", log=_write_traceback())
        return 1


def _request(arguments: list[str]) -> Request:
    """The command line as a request.

    Raises:
      UserError: An unknown verb, or too many arguments.
    """
    verb, *rest = arguments or ["run"]
    if verb not in VERBS:
        raise UserError(f"{verb!r} is not a verb; use one of: {', '.join(VERBS)}")
    if len(rest) > 1:
        raise UserError(f"too many arguments: {' '.join(rest[1:])!r}; {verb} takes at most one")
    return Request(
        verb=verb,
        run=rest[0] if rest else None,
        config=_CONFIG.value,
        storage_root=_STORAGE_ROOT.value,
        overrides=tuple(_SET.value),
        json=_FORMAT.value == "json",
        hardware=_HARDWARE.value,
        server=_SERVER.value,
        certificates=_CERTIFICATES.value,
        request_id=_REQUEST_ID.value,
        follow=_FOLLOW.value,
        service_config=_SERVICE_CONFIG.value,
        insecure_loopback=_INSECURE_LOOPBACK.value,
        watch=_WATCH.value,
    )


def _write_traceback() -> str:
    """Keeps the traceback of an internal error in a file, and returns its path."""
    text = traceback.format_exc()
    if _VERBOSE.value:
        print(text, file=sys.stderr)
    with tempfile.NamedTemporaryFile("w", prefix="finecut-error-", suffix=".log", delete=False) as file:
        file.write(text)
    return file.name


def parse(arguments: list[str]) -> list[str]:
    """Parses flags. absl's own parser exits with 1 after --help and after errors, and prints all help on errors."""
    if {"--help", "-help", "--h", "-h"}.intersection(arguments):
        own = flags.FLAGS.get_flags_for_module(flags.FLAGS.find_module_defining_flag("config"))
        print(__doc__ + "\nFlags:\n" + "\n".join(f"  --{flag.name}: {flag.help}" for flag in own))
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        Output(as_json="--format=json" in arguments).invalid(UserError(str(error)))
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)

"""Makes certificates for a service and those who call it.

Usage: bazel run //launcher/security:certificates -- VERB [FLAGS]

  create  Makes the authority in --authority.
  issue   Writes the certificate of --name to --out: certificate.pem, key.pem (private) and authority.pem.
          Again with the same --out: renews it, and a running service takes it without a restart.
  rotate  Gives the authority a new key. Issue all certificates again afterwards; the old ones stay valid until then.

Examples:
  certificates create --authority=$HOME/finecut-authority
  certificates issue --authority=$HOME/finecut-authority --name=service --addresses=10.0.0.5,jobs.org --out=service
  certificates issue --authority=$HOME/finecut-authority --name=ann --out=ann
"""

import datetime
import sys
from pathlib import Path

from absl import app, flags

from finecut.launcher.security.authority import Authority, is_due
from finecut.proto.config import UserError, places

_AUTHORITY = flags.DEFINE_string("authority", None, "Folder of the authority. Keep it off the machines it certifies.")
_NAME = flags.DEFINE_string("name", None, "Who the certificate is for: a principal's certificate name.")
_ADDRESSES = flags.DEFINE_list("addresses", [], "IP addresses and DNS names at which a service is reached.")
_DAYS = flags.DEFINE_integer("days", 90, "Lifetime.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Folder of the certificate.")
_ONLY_IF_DUE = flags.DEFINE_bool("only_if_due", False, "Issue only where less than a third of the lifetime is left.")


def main(arguments: list[str]) -> int:
    """Parses, runs one verb, and says what it did."""
    try:
        print(_run(arguments[1:]))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(verbs: list[str]) -> str:
    if verbs not in (["create"], ["issue"], ["rotate"]):
        raise UserError(f"{' '.join(verbs) or 'nothing'!r} is not a verb; use one of: create, issue, rotate")
    folder = _folder("authority", _AUTHORITY.value)
    if verbs == ["create"]:
        Authority.create(folder)
        return f"made an authority in {folder}"
    authority = Authority.load(folder)
    if verbs == ["rotate"]:
        authority.rotate()
        return f"{folder} has a new key; issue every certificate again"
    if not _NAME.value:
        raise UserError("--name is not set; say who the certificate is for")
    out = _folder("out", _OUT.value)
    if _ONLY_IF_DUE.value and _is_fresh(out / "certificate.pem"):
        return f"{out} is not due yet"
    authority.mint(_NAME.value, _ADDRESSES.value, datetime.timedelta(days=_DAYS.value)).write(
        out, authority.trusted_pem
    )
    return f"wrote the certificate of {_NAME.value} to {out}, valid for {_DAYS.value} days"


def _is_fresh(certificate: Path) -> bool:
    return certificate.exists() and not is_due(certificate.read_bytes())


def _folder(flag: str, value: str | None) -> Path:
    if not value:
        raise UserError(f"--{flag} is not set; name a folder")
    return places.user_folder() / Path(value).expanduser()


if __name__ == "__main__":
    app.run(main)

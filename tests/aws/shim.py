"""A WSGI shim around moto's server that adds what moto accepts but does not do, and faults on demand.

    request -> recorded -> throttled? -> denied? -> token seen before? -> no capacity? -> moto -> reply (or lost)

Added: client tokens (replay, mismatch, spent), placement groups, capacity by zone and type, throttling, denials,
replies that are lost after the work was done, all requests as sent.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import run_wsgi_app

Form = dict[str, str]
Reply = tuple[str, list[tuple[str, str]], bytes]
_ACCOUNT = "123456789012"  # moto's
_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


@dataclass
class Faults:
    """What goes wrong. Example: Faults(no_capacity={("g5.xlarge", "subnet-1")}, throttle=3)."""

    no_capacity: set[tuple[str, str]] = field(default_factory=set)  # (type, subnet)
    throttle: int = 0  # so many of the next EC2 calls
    lose_replies: dict[str, int] = field(default_factory=dict)  # operation -> so many of the next
    deny: dict[str, str] = field(default_factory=dict)  # operation -> error code
    down: bool = False  # every EC2 call fails with a server's error


class Shim:
    """The application. `sent` holds (operation, form) of every call in the query protocol (EC2, IAM)."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.sent: list[tuple[str, Form]] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[Form, Reply]] = {}
        self._groups: dict[str, Form] = {}
        self._offerings: dict[str, Reply] = {}

    def start_anew(self) -> None:
        """Forgets everything that it added to moto."""
        self.faults = Faults()
        self.sent.clear()
        self._tokens.clear()
        self._groups.clear()

    def bury(self) -> None:
        """Forgets instances that have ended: moto lists them for ever, and gets slower with each."""
        from moto.ec2.models import ec2_backends

        for backend in ec2_backends[_ACCOUNT].values():
            for name, reservation in list(backend.reservations.items()):
                if all(instance.state == "terminated" for instance in reservation.instances):
                    del backend.reservations[name]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        environ["wsgi.input"] = io.BytesIO(body)
        text = body.decode("utf-8", "replace")
        form = dict(parse_qsl(text, keep_blank_values=True)) if "Action=" in text else {}
        status, headers, content = self._answer(form.get("Action", ""), form, environ)
        start_response(status, headers)
        return [content]

    @property
    def placement_groups(self) -> list[str]:
        """Names of those that there are."""
        return list(self._groups)

    def requests(self, operation: str) -> list[Form]:
        """Forms of all calls of one operation, in order."""
        return [form for name, form in self.sent if name == operation]

    def _answer(self, operation: str, form: Form, environ: dict[str, Any]) -> Reply:
        if not operation:
            return self._pass_on(environ)
        with self._lock:  # tokens and capacity are looked at and used in one step
            self.sent.append((operation, form))
            faults = self.faults
            if faults.down:
                return _error(503, "Unavailable", "The service is unavailable")
            if operation in faults.deny:
                return _error(403, faults.deny[operation], f"You are not authorized to perform: ec2:{operation}")
            if faults.throttle > 0:
                faults.throttle -= 1
                return _error(503, "RequestLimitExceeded", "Request limit exceeded.")
            reply = self._work(operation, form, environ)
            if faults.lose_replies.get(operation, 0) > 0:
                faults.lose_replies[operation] -= 1
                return _error(500, "InternalError", "the reply was lost after the work was done")
            return reply

    def _work(self, operation: str, form: Form, environ: dict[str, Any]) -> Reply:
        if operation.endswith("PlacementGroup") or operation == "DescribePlacementGroups":
            return self._placement_group(operation, form)
        if operation == "RunInstances":
            return self._run_instances(form, environ)
        if operation == "CreateFleet":
            return self._create_fleet(form, environ)
        if operation == "DescribeInstanceTypeOfferings":  # the same for ever, and slow in moto
            key = form.get("Filter.1.Value.1", "")
            if key not in self._offerings:
                self._offerings[key] = self._pass_on(environ)
            return self._offerings[key]
        try:
            return self._pass_on(environ)
        except ValueError:
            if operation != "RemoveRoleFromInstanceProfile":  # where moto fails and IAM answers
                raise
            return _error(404, "NoSuchEntity", "The role is not in the instance profile")

    def _run_instances(self, form: Form, environ: dict[str, Any]) -> Reply:
        if (replayed := self._replay(form)) is not None:
            return replayed
        place = (form["InstanceType"], form.get("NetworkInterface.1.SubnetId", ""))
        if place in self.faults.no_capacity:
            return _error(500, "InsufficientInstanceCapacity", f"There is no capacity for {place[0]} in {place[1]}")
        group = form.get("Placement.GroupName")
        if group and group not in self._groups:
            return _error(400, "InvalidPlacementGroup.Unknown", f"The placement group '{group}' is unknown")
        return self._keep(form, self._pass_on(environ))

    def _create_fleet(self, form: Form, environ: dict[str, Any]) -> Reply:
        """All of one type in one zone, or none and a reason for each pair."""
        if (replayed := self._replay(form)) is not None:
            return replayed
        pairs = _overrides(form)
        free = [key for key, place in pairs.items() if place not in self.faults.no_capacity]
        if not free:
            codes = "<item><errorCode>InsufficientInstanceCapacity</errorCode></item>" * len(pairs)
            return _reply("CreateFleet", f"<fleetId>fleet-0</fleetId><errorSet>{codes}</errorSet>")
        config, override = free[0]
        kept = {
            _renumbered(key, config, override): value
            for key, value in form.items()
            if not key.startswith("LaunchTemplateConfigs.") or _is_of(key, config, override)
        }
        body = urlencode(kept).encode()
        rewritten = environ | {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return self._keep(form, self._pass_on(rewritten))

    def _replay(self, form: Form) -> Reply | None:
        """What a token that was seen before gives; None: it is new."""
        if form.get("ClientToken", "") not in self._tokens:
            return None
        before, reply = self._tokens[form["ClientToken"]]
        if before != _lasting(form):
            return _error(400, "IdempotentParameterMismatch", "The parameters differ from the first request's")
        if self._has_ended(reply):
            return _error(400, "IdempotentInstanceTerminated", "The instance of this token is terminated")
        return reply

    def _keep(self, form: Form, reply: Reply) -> Reply:
        if reply[0].startswith("200"):
            self._tokens[form.get("ClientToken", "")] = (_lasting(form), reply)
        return reply

    def _has_ended(self, reply: Reply) -> bool:
        from moto.ec2.models import ec2_backends

        text = reply[2].decode()
        backend = next(iter(ec2_backends.values()))["us-east-1"]
        ids = re.findall(r"i-[0-9a-f]{17}", text)
        states = [i.state for i in backend.all_instances() if i.id in ids]
        return not any(state in ("pending", "running") for state in states)

    def _placement_group(self, operation: str, form: Form) -> Reply:
        name = form.get("GroupName", "")
        if operation == "CreatePlacementGroup":
            if name in self._groups:
                return _error(400, "InvalidPlacementGroup.Duplicate", f"The placement group '{name}' already exists")
            self._groups[name] = form
            return _reply(operation, "<return>true</return>")
        if operation == "DeletePlacementGroup":
            if self._groups.pop(name, None) is None:
                return _error(400, "InvalidPlacementGroup.Unknown", f"The placement group '{name}' is unknown")
            return _reply(operation, "<return>true</return>")
        cluster = form.get("Filter.1.Value.1", "")
        items = "".join(
            f"<item><groupName>{escape(group)}</groupName><state>available</state></item>"
            for group, made in self._groups.items()
            if made.get("TagSpecification.1.Tag.1.Value") == cluster
        )
        return _reply(operation, f"<placementGroupSet>{items}</placementGroupSet>")

    def _pass_on(self, environ: dict[str, Any]) -> Reply:
        content, status, headers = run_wsgi_app(self._moto, environ, buffered=True)
        # Private addresses become loopback ones, so that machines of a test can have them: 172.31.0.4 is 127.31.0.4.
        body = b"".join(content).replace(b">172.31.", b">127.31.")
        return status, list(headers.items()), body


def _lasting(form: Form) -> Form:
    return {key: value for key, value in form.items() if key not in ("Timestamp", "Signature")}


def _overrides(form: Form) -> dict[tuple[str, str], tuple[str, str]]:
    """(config, override), as numbered in a CreateFleet's form -> (type, subnet); by priority."""
    found = {}
    for key, value in form.items():
        if match := re.fullmatch(r"LaunchTemplateConfigs\.(\d+)\.Overrides\.(\d+)\.InstanceType", key):
            stem = key.removesuffix("InstanceType")
            found[match[1], match[2]] = (float(form[f"{stem}Priority"]), value, form[f"{stem}SubnetId"])
    return {key: (name, subnet) for key, (_, name, subnet) in sorted(found.items(), key=lambda item: item[1])}


def _is_of(key: str, config: str, override: str) -> bool:
    stem = f"LaunchTemplateConfigs.{config}."
    return key.startswith((f"{stem}LaunchTemplateSpecification.", f"{stem}Overrides.{override}."))


def _renumbered(key: str, config: str, override: str) -> str:
    key = key.replace(f"LaunchTemplateConfigs.{config}.", "LaunchTemplateConfigs.1.")
    return key.replace(f"Overrides.{override}.", "Overrides.1.")


def _reply(operation: str, inner: str) -> Reply:
    text = f'<{operation}Response xmlns="{_NAMESPACE}"><requestId>shim</requestId>{inner}</{operation}Response>'
    return "200 OK", [("Content-Type", "text/xml")], text.encode()


def _error(status: int, code: str, message: str) -> Reply:
    text = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
        "<RequestID>shim</RequestID></Response>"
    )
    return f"{status} Fault", [("Content-Type", "text/xml")], text.encode()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Requests are in `sent`."""


@contextmanager
def serving(shim: Shim) -> Iterator[str]:
    """Serves the shim on a loopback port; yields its URL."""
    server = make_server("127.0.0.1", 0, shim, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()

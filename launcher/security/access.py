"""Who calls, and what they may do: principals by the common name of their certificate, methods by role."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finecut.proto import service_config_pb2
from finecut.proto.config import ConfigError, Problem
from finecut.proto.config.walk import rule_of

_V, _S, _O = service_config_pb2.VIEWER, service_config_pb2.SUBMITTER, service_config_pb2.OPERATOR
_ALL = frozenset({_V, _S, _O})
_CHANGES = frozenset({_S, _O})

# Every method of the service; one that is missing here may be called by nobody.
ROLES = {
    "SubmitJob": _CHANGES,
    "GetJob": _ALL,
    "ListJobs": _ALL,
    "WatchJob": _ALL,
    "CancelJob": _CHANGES,
    "ValidateJob": _CHANGES,
    "PlanJob": _CHANGES,
}


class AccessDeniedError(Exception):
    """The caller may not do this. The text is for the caller."""


@dataclass(frozen=True)
class Principal:
    """A caller whose identity is proven.

    Attributes:
      max_active_jobs: Jobs that wait or run; more are refused.
      folders: Absolute; what its jobs may read and write. Empty: anything.
    """

    name: str
    role: int
    max_active_jobs: int
    folders: tuple[str, ...] = ()

    @property
    def sees_all(self) -> bool:
        """Whether jobs of others exist for it."""
        return self.role in (_V, _O)


class Directory:
    """The principals of a service."""

    def __init__(self, by_certificate: Mapping[str, Principal], single_user: Principal | None = None) -> None:
        self._by_certificate = dict(by_certificate)
        self._single_user = single_user

    def identify(self, properties: Mapping[str, Iterable[bytes]]) -> Principal:
        """The principal behind a connection's properties (`ServicerContext.auth_context`).

        Raises:
          AccessDeniedError: Nobody that this service knows.
        """
        if self._single_user is not None:
            return self._single_user
        names = [name.decode("utf-8", "replace") for name in properties.get("x509_common_name", ())]
        if not names:
            raise AccessDeniedError("the connection shows no certificate; connect with TLS and a certificate of yours")
        if names[0] not in self._by_certificate:
            raise AccessDeniedError(
                f"the certificate of {names[0]!r} belongs to no principal of this service; ask its operator to add it"
            )
        return self._by_certificate[names[0]]


def authorise(caller: Principal, method: str) -> None:
    """Lets a caller go on, or raises AccessDeniedError."""
    if caller.role not in ROLES.get(method, ()):
        role = service_config_pb2.Role.Name(caller.role)  # type: ignore[arg-type]
        raise AccessDeniedError(f"{caller.name} is a {role}, who may not call {method}; ask the operator for a role")


def directory_of(config: service_config_pb2.ServiceConfig) -> Directory:
    """The principals that a service's config names.

    Raises:
      ConfigError: Nobody could call, two principals share a name or a certificate, or a connection without TLS could
        come from another machine.
    """
    problems = list(_conflicts(config))
    by_certificate: dict[str, Principal] = {}
    for index, entry in enumerate(config.principals):
        for position, name in enumerate(entry.certificate_names or [entry.name]):
            if name in by_certificate:
                where = f"principals[{index}].certificate_names[{position}]"
                problems.append(Problem(where, f'"{name}" is also a certificate of {by_certificate[name].name}'))
            by_certificate[name] = Principal(entry.name, entry.role, entry.max_active_jobs, tuple(entry.folders))
    if problems:
        raise ConfigError(problems)
    if config.certificates:
        return Directory(by_certificate)
    quota = rule_of(service_config_pb2.Principal.DESCRIPTOR.fields_by_name["max_active_jobs"]).default
    return Directory({}, Principal(config.single_user, _O, int(quota)))


def _conflicts(config: service_config_pb2.ServiceConfig) -> Iterable[Problem]:
    if config.certificates:
        if config.single_user:
            yield Problem("single_user", "is for a service without TLS, and certificates is set; unset one of them")
        if not config.principals:
            yield Problem("principals", "is empty, so nobody could call; name at least one")
    elif not config.single_user:
        yield Problem("certificates", "is not set; make some with //launcher/security:certificates, or set single_user")
    elif not is_loopback(config.listen):
        yield Problem(
            "listen", f'"{config.listen}" can be reached from elsewhere; set certificates, or listen on 127.0.0.1'
        )
    elif config.principals:
        yield Problem("principals", "cannot be told apart without TLS; set certificates, or leave single_user alone")
    names = [principal.name for principal in config.principals]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Problem(f"principals[{index}].name", f'"{name}" is there twice; merge the two')


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can be reached from its own machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

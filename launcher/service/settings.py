"""The config of a service, from its file or for one user of this machine."""

import getpass
import os
from pathlib import Path

from finecut.proto import service_config_pb2
from finecut.proto.config import defaults, load_message, places


def load(path: str) -> service_config_pb2.ServiceConfig:
    """The config in a file, with defaults and absolute paths.

    Raises:
      ConfigError: With every problem of the file.
    """
    config = load_message(path, service_config_pb2.ServiceConfig())
    config.folder = _absolute(config.folder)
    if config.certificates:
        config.certificates = _absolute(config.certificates)
    if config.store.startswith("sqlite:///"):
        config.store = f"sqlite:///{_absolute(config.store.removeprefix('sqlite:///'))}"
    for principal in config.principals:
        principal.folders[:] = [_absolute(folder) for folder in principal.folders]
    return config


def for_one_user(folder: str) -> service_config_pb2.ServiceConfig:
    """A service on loopback without TLS, on which everybody is the user who starts it."""
    config = service_config_pb2.ServiceConfig(folder=_absolute(folder), single_user=getpass.getuser())
    defaults.fill(config)
    return config


def _absolute(path: str) -> str:
    return os.path.normpath(places.user_folder() / Path(path).expanduser())

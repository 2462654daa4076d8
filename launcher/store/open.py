"""From a URL to a job store."""

from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from finecut.launcher.store.postgresql import PostgresqlDatabase
from finecut.launcher.store.sqlite import SqliteDatabase
from finecut.launcher.store.store import JobStore
from finecut.proto.config import UserError


def open_store(url: str) -> JobStore:
    """The store behind "sqlite:///PATH" or "postgresql://HOST/NAME"; its tables are made where they are missing.

    Raises:
      UserError: Another URL, or one with a password in it.
      StoreUnavailableError: Nobody answers there.
    """
    if url.startswith("sqlite:///"):
        return JobStore(SqliteDatabase(Path(url.removeprefix("sqlite:///"))))
    if not url.startswith(("postgresql://", "postgres://")):
        raise UserError('the store must be "postgresql://USER@HOST/DATABASE" or "sqlite:///PATH"')
    try:
        has_password = "password" in conninfo_to_dict(url)
    except psycopg.Error as error:
        raise UserError(f"the store's URL is not one of PostgreSQL: {error}") from None
    if has_password:
        raise UserError("the store's URL holds a password, which others could read; use PGPASSWORD or ~/.pgpass")
    return JobStore(PostgresqlDatabase(url))

"""Tables of the job store."""

from finecut.launcher.store.database import Database
from finecut.proto import service_pb2
from finecut.proto.config import UserError

VERSION = 1

ACTIVE = (service_pb2.PENDING, service_pb2.RUNNING)

# stages: serialized StageStatus messages in a Job; positions: JSON of how far each log of the run was read;
# fence: grows with each lease, and a writer with an older one is refused.
_TABLES = """
CREATE TABLE IF NOT EXISTS finecut_schema (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS finecut_jobs (
  number {number_type},
  id TEXT NOT NULL UNIQUE,
  principal TEXT NOT NULL,
  request_id TEXT NOT NULL,
  config {bytes_type} NOT NULL,
  config_digest TEXT NOT NULL,
  run_folder TEXT NOT NULL,
  state INTEGER NOT NULL,
  error TEXT NOT NULL DEFAULT '',
  stages {bytes_type} NOT NULL,
  created_at DOUBLE PRECISION NOT NULL,
  ended_at DOUBLE PRECISION,
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  owner TEXT NOT NULL DEFAULT '',
  fence BIGINT NOT NULL DEFAULT 0,
  lease_until DOUBLE PRECISION NOT NULL DEFAULT 0,
  sequence BIGINT NOT NULL DEFAULT 0,
  positions TEXT NOT NULL DEFAULT '',
  UNIQUE (principal, request_id)
);
CREATE INDEX IF NOT EXISTS finecut_jobs_by_state ON finecut_jobs (state, principal, number);
CREATE INDEX IF NOT EXISTS finecut_jobs_by_principal ON finecut_jobs (principal, number);
CREATE UNIQUE INDEX IF NOT EXISTS finecut_jobs_one_active_in_a_folder ON finecut_jobs (run_folder)
  WHERE state IN {active};
CREATE TABLE IF NOT EXISTS finecut_events (
  job TEXT NOT NULL,
  sequence BIGINT NOT NULL,
  event {bytes_type} NOT NULL,
  PRIMARY KEY (job, sequence)
);
"""


def create(database: Database) -> None:
    """Creates the tables where they are missing.

    Raises:
      UserError: They were made by a newer version.
    """
    text = _TABLES.format(number_type=database.number_type, bytes_type=database.bytes_type, active=ACTIVE)
    with database.write() as transaction:
        transaction.lock("schema")
        for statement in text.split(";"):
            if statement.strip():
                transaction.execute(statement)
        found = transaction.execute("SELECT version FROM finecut_schema")
        if not found:
            transaction.execute("INSERT INTO finecut_schema (version) VALUES (?)", (VERSION,))
        elif found[0][0] != VERSION:
            raise UserError(f"the store has tables of version {found[0][0]}, this program knows {VERSION}; update it")

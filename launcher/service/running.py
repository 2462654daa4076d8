"""What the supervisor works with: its settings, and what it knows of each job that it holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finecut.launcher.service import children
from finecut.launcher.service.run_events import RunEvents
from finecut.launcher.store.records import JobRecord


@dataclass(frozen=True)
class Settings:
    """How a supervisor works.

    Attributes:
      owner: Name of this service in leases; no two live services share one.
      folder: Private; holds a folder for each job.
      max_running: Jobs at once, here.
      max_running_of: Jobs at once of some principals, everywhere.
      lease_seconds: How long a job rests after a service has vanished.
      seconds_to_checkpoint: For launchers to save and stop when the service stops.
      module: See children.Child.
    """

    owner: str
    folder: Path
    max_running: int
    max_running_of: Mapping[str, int] = field(default_factory=dict)
    lease_seconds: float = 30.0
    seconds_to_checkpoint: float = 110.0
    module: str = children.MODULE


@dataclass
class Running:
    """A job that this service holds.

    Attributes:
      child: None while it waits for an earlier launcher of the run to be gone.
      leased_at: When the lease was last asked for (child.now).
      releases: The child gives back what an earlier launcher held.
      advanced: The child has done work.
      waits: It was told that the job waits for an earlier launcher.
      start_at: Not before this time.
      kill_at: When a launcher that was asked to stop is killed.
    """

    job: JobRecord
    fence: int
    events: RunEvents
    leased_at: float
    child: children.Child | None = None
    releases: bool = False
    cancelling: bool = False
    advanced: bool = False
    waits: bool = False
    start_at: float = 0.0
    kill_at: float = math.inf

"""What a run looks like on disk: its folders, artifacts and event logs. Everybody may use it."""

from finecut.proto.run.folder import RunFolder

__all__ = ["RunFolder"]

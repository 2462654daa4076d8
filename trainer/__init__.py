"""The trainer: SPMD recipes over sharded models, their data, checkpoints and metrics.

Public: `stage.run_stage` (one rank), `worker.run_group` (Ray actors) and the binary `//trainer`. The launcher uses
these; nothing else outside this folder imports it.
"""

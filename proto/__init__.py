"""The public contract: what a job, its data, its models and its machines are. Everybody may use it.

The `*_pb2` modules are generated from the `.proto` files beside this one. `config` loads, merges and validates them;
`run` says what a run looks like on disk. Nothing here imports torch or ray.
"""

"""The launcher as a gRPC service. Started by the verb `serve`; other programs use finecut.launcher.client."""

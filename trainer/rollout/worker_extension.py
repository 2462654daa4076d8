"""What is added to vLLM's worker class, and happens in its process before a model is loaded.

vLLM imports this module by name (`worker_extension_cls`) in each worker process; its methods are called through
`collective_rpc`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from vllm.model_executor.layers import utils as layer_utils
from vllm.platforms import current_platform

from finecut.trainer.rollout import backends
from finecut.trainer.rollout.engine_weights import weight_checksums


def _keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Stands in for vLLM's dispatch on CPUs, which packs weights for oneDNN and throws the originals away."""
    layer.cpu_linear = lambda x, weight, bias: functional.linear(x, weight, bias)


backends.register_receivers()
if current_platform.is_cpu():
    # Packed weights cannot be compared with the trainer's, and a pack that is not renewed would be a stale weight.
    layer_utils.dispatch_cpu_unquantized_gemm = _keep_plain_weights


class WorkerExtension:
    """Mixed into vLLM's worker. The names are long so that they never meet one of vLLM's own."""

    def finecut_weight_checksums(self: Any) -> dict[str, int]:
        """What this rank's memory adds to each tensor's checksum."""
        with torch.inference_mode():
            return weight_checksums(self.model_runner.get_model())

    def finecut_discard_weights(self: Any) -> None:
        """Overwrites all weights, as a deep sleep on a GPU does: nobody can compute with old ones by accident."""
        for parameter in self.model_runner.get_model().parameters():
            parameter.data.zero_()

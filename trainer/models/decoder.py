"""The decoder-only transformer that every family is mapped to.

Shapes: B rows, L tokens a row, T = B * L, D hidden size, H query heads, G key heads, K head size, V padded vocabulary.

Parameters are made in FP32. The module also computes in BF16 and FP16, under FSDP2's MixedPrecisionPolicy or autocast;
norms, rotary positions and the loss stay in FP32. It holds no buffers, so the meta device loses nothing.

Under FSDP2 each of `layers` is a unit; the embedding, the final norm and the head stay in the root unit, which is
gathered for the whole of `forward`. Hence the loss is computed inside `forward`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora import LoraConfig
from finecut.trainer.models.rope import Rotation, rotate, rotation
from finecut.trainer.ops.attention import attend
from finecut.trainer.ops.cross_entropy import cross_entropy_sum
from finecut.trainer.ops.document_layout import DocumentLayout

# Parameters with a row for each token of the padded vocabulary.
VOCABULARY_PARAMETERS = ("embedding.weight", "head.weight")


@dataclasses.dataclass(frozen=True)
class BatchContext:
    """What every layer needs to know of the batch, worked out once. See Rotation for why it is a dataclass."""

    rotation: Rotation
    layout: DocumentLayout


class RMSNorm(nn.Module):
    """Root-mean-square norm, in FP32 inside."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x_BLD: Tensor) -> Tensor:
        wide_BLD = x_BLD.to(torch.promote_types(x_BLD.dtype, torch.float32))
        scale_BL1 = torch.rsqrt(wide_BLD.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return self.weight * (wide_BLD * scale_BL1).to(x_BLD.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention within documents."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        query_size = config.num_heads * config.head_size
        key_size = config.num_key_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor, context: BatchContext) -> Tensor:
        q_BLHK = rotate(self.q_proj(x_BLD).unflatten(-1, (-1, self.head_size)), context.rotation)
        k_BLGK = rotate(self.k_proj(x_BLD).unflatten(-1, (-1, self.head_size)), context.rotation)
        v_BLGK = self.v_proj(x_BLD).unflatten(-1, (-1, self.head_size))
        return self.o_proj(attend(q_BLHK, k_BLGK, v_BLGK, context.layout).flatten(-2))


class SwiGlu(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each with a norm before and a residual around it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = SwiGlu(config)

    def forward(self, x_BLD: Tensor, context: BatchContext) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), context)
        return x_BLD + self.mlp(self.mlp_norm(x_BLD))


class Decoder(nn.Module):
    """Token ids in; hidden states, or the loss summed over targets, out."""

    def __init__(self, config: DecoderConfig, loss_chunk_tokens: int = 1024) -> None:
        super().__init__()
        self.config = config
        self.loss_chunk_tokens = loss_chunk_tokens
        # Tensor parallelism puts the one for a split vocabulary here.
        self.cross_entropy = cross_entropy_sum
        # Set by lora.apply_lora.
        self.lora: LoraConfig | None = None
        self.embedding = nn.Embedding(config.padded_vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        if not config.tied_embeddings:
            self.head = nn.Linear(config.hidden_size, config.padded_vocabulary_size, bias=False)

    def head_weight(self) -> Tensor:
        """[V, D]: the head's weight, or the embedding's where they are tied."""
        return self.embedding.weight if self.config.tied_embeddings else self.head.weight

    def exported_shape(self, name: str, parameter: Tensor) -> tuple[int, ...]:
        """Shape outside, where the vocabulary has no padding, of the parameter of that name."""
        if name in VOCABULARY_PARAMETERS:
            return (self.config.vocabulary_size, *parameter.shape[1:])
        return tuple(parameter.shape)

    def forward(
        self, input_ids_BL: Tensor, position_ids_BL: Tensor, document_ids_BL: Tensor, targets_BL: Tensor | None = None
    ) -> Tensor:
        """Runs the decoder over packed documents.

        Args:
          input_ids_BL: token ids.
          position_ids_BL: position in its document; restarts at 0 in each.
          document_ids_BL: document of the row; -1 is padding.
          targets_BL: the token each position has to predict, already shifted by the caller; -100 where none counts.

        Returns:
          Without targets, the hidden states [B, L, D] after the final norm. With targets, the cross entropy summed
          over them, a scalar in FP32; 0, with zero gradients, when none counts.
        """
        context = BatchContext(
            rotation(self.config.rope, self.config.head_size, position_ids_BL),
            DocumentLayout.of(document_ids_BL, position_ids_BL),
        )
        x_BLD = self.embedding(input_ids_BL)
        for layer in self.layers:
            x_BLD = layer(x_BLD, context)
        x_BLD = self.final_norm(x_BLD)
        if targets_BL is None:
            return x_BLD
        return self.cross_entropy(
            x_BLD.flatten(0, 1),
            self.head_weight(),
            targets_BL.flatten(),
            self.loss_chunk_tokens,
            self.config.vocabulary_size,
        )

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """[B, L, vocabulary] in FP32, without the padded rows. For tests and checks: training never holds them all."""
        return functional.linear(hidden_BLD, self.head_weight())[..., : self.config.vocabulary_size].float()

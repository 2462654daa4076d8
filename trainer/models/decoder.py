"""The decoder-only transformer that every family is mapped to.

Shapes: B rows, L tokens a row, T = B * L, D hidden size, H query heads, G key heads, K head size, V padded vocabulary.

Parameters are made in FP32. The module also computes in BF16 and FP16, under FSDP2's MixedPrecisionPolicy or autocast;
norms, rotary positions and the loss stay in FP32. It holds no buffers, so the meta device loses nothing.

Under FSDP2 each of `layers` is a unit; the embedding, the final norm and the head stay in the root unit, which is
gathered for the whole of `forward`. Hence the loss is computed inside `forward`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from finecut.trainer.models.architecture import Activation, OutputHead
from finecut.trainer.models.config import DecoderConfig, padded
from finecut.trainer.models.lora import LoraConfig, project
from finecut.trainer.models.mixture import MixtureOfExperts
from finecut.trainer.models.rope import rotation
from finecut.trainer.ops.attention import attend
from finecut.trainer.ops.cross_entropy import TrainedTokens, cross_entropy_sum
from finecut.trainer.ops.document_layout import DocumentLayout
from finecut.trainer.ops.norm import rms_norm
from finecut.trainer.ops.rotary import Rotation, rotate
from finecut.trainer.ops.swiglu import geglu, swiglu
from finecut.trainer.ops.vocabulary_parallel import VocabularySlice

# Parameters with a row for each token of the padded vocabulary.
VOCABULARY_PARAMETERS = ("embedding.weight", "head.weight")
SCORE_PARAMETER = "score.weight"  # of an output head


@dataclasses.dataclass(frozen=True)
class BatchContext:
    """What every layer needs to know of the batch, worked out once. See Rotation for why it is a dataclass."""

    # Of the layers that see their whole document, and of those with a window.
    rotation: Rotation
    local_rotation: Rotation | None
    layout: DocumentLayout

    @staticmethod
    def of(config: DecoderConfig, position_ids_BL: Tensor, document_ids_BL: Tensor) -> BatchContext:
        """The context of a batch."""
        everywhere = rotation(config.rope, config.head_size, position_ids_BL)
        nearby = None
        if config.local:
            is_same = config.local.rope == config.rope
            nearby = everywhere if is_same else rotation(config.local.rope, config.head_size, position_ids_BL)
        return BatchContext(everywhere, nearby, DocumentLayout.of(document_ids_BL, position_ids_BL))


class RMSNorm(nn.Module):
    """Root-mean-square norm, in FP32 inside."""

    def __init__(self, size: int, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = config.norm_epsilon
        self.plus_one = config.norm_plus_one

    def forward(self, x_BLD: Tensor) -> Tensor:
        return rms_norm(x_BLD, self.weight, self.epsilon, self.plus_one)


class Attention(nn.Module):
    """Grouped-query self-attention within documents."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.scale = config.attention_scale
        self.soft_cap = config.attention_soft_cap
        self.window = config.local.window if config.local and config.is_local(layer) else None
        query_size = config.num_heads * config.head_size
        key_size = config.num_key_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.query_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.query_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.query_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_size, config) if config.query_key_norm else None
        self.k_norm = RMSNorm(config.head_size, config) if config.query_key_norm else None

    def forward(self, x_BLD: Tensor, context: BatchContext) -> Tensor:
        projected = project(x_BLD, self.q_proj, self.k_proj, self.v_proj)
        q_BLHK, k_BLGK, v_BLGK = (part.unflatten(-1, (-1, self.head_size)) for part in projected)
        if self.q_norm and self.k_norm:
            q_BLHK, k_BLGK = self.q_norm(q_BLHK), self.k_norm(k_BLGK)
        turn = context.rotation if self.window is None else context.local_rotation
        assert turn is not None
        q_BLHK, k_BLGK = rotate(q_BLHK, k_BLGK, turn)
        out_BLHK = attend(
            q_BLHK, k_BLGK, v_BLGK, context.layout, scale=self.scale, window=self.window, soft_cap=self.soft_cap
        )
        return self.o_proj(out_BLHK.flatten(-2))


class GatedMlp(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.product = {Activation.SILU: swiglu, Activation.GELU_TANH: geglu}[config.activation]
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down_proj(self.product(*project(x_BLD, self.gate_proj, self.up_proj)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each with a norm before, in some families one after, and a residual around it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config)
        self.attention = Attention(config, layer)
        self.attention_out_norm = RMSNorm(config.hidden_size, config) if config.norms_after else None
        self.mlp_norm = RMSNorm(config.hidden_size, config)
        self.mlp: nn.Module = GatedMlp(config)
        if config.experts and config.has_experts(layer):
            self.mlp = MixtureOfExperts(config.hidden_size, config.experts)
        self.mlp_out_norm = RMSNorm(config.hidden_size, config) if config.norms_after else None

    def forward(self, x_BLD: Tensor, context: BatchContext) -> Tensor:
        out_BLD = self.attention(self.attention_norm(x_BLD), context)
        x_BLD = x_BLD + (self.attention_out_norm(out_BLD) if self.attention_out_norm else out_BLD)
        out_BLD = self.mlp(self.mlp_norm(x_BLD))
        return x_BLD + (self.mlp_out_norm(out_BLD) if self.mlp_out_norm else out_BLD)


class Decoder(nn.Module):
    """Token ids in; hidden states, the loss summed over targets, or an output head's numbers, out."""

    def __init__(
        self, config: DecoderConfig, loss_chunk_tokens: int | None = None, output_head: OutputHead | None = None
    ) -> None:
        """`output_head` takes the place of the language-model head."""
        super().__init__()
        self.config = config
        self.loss_chunk_tokens = loss_chunk_tokens
        self.output_head = output_head
        # Which rows of the head this rank has; set by tensor parallelism.
        self.vocabulary_slice: VocabularySlice | None = None
        # Set by lora.apply_lora.
        self.lora: LoraConfig | None = None
        self.embedding = nn.Embedding(config.padded_vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config)
        if output_head:
            rows = 1 if output_head.is_scalar else padded(output_head.num_outputs)
            self.score = nn.Linear(config.hidden_size, rows, bias=False)
        elif not config.tied_embeddings:
            self.head = nn.Linear(config.hidden_size, config.padded_vocabulary_size, bias=False)

    def head_weight(self) -> Tensor:
        """[V, D]: the head's weight, or the embedding's where they are tied; an output head's where there is one."""
        if self.output_head:
            return self.score.weight
        return self.embedding.weight if self.config.tied_embeddings else self.head.weight

    @property
    def num_outputs(self) -> int:
        """Rows of the head that mean something."""
        return self.output_head.num_outputs if self.output_head else self.config.vocabulary_size

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter holds all that is trained; new rows of the vocabulary have no place in one."""
        return self.lora is not None and self.config.new_rows is None

    def exported_shape(self, name: str, parameter: Tensor) -> tuple[int, ...]:
        """Shape outside, where nothing is padded, of the parameter of that name."""
        if name in VOCABULARY_PARAMETERS:
            return (self.config.vocabulary_size, *parameter.shape[1:])
        if name == SCORE_PARAMETER:
            return (self.num_outputs, *parameter.shape[1:])
        return tuple(parameter.shape)

    def forward(
        self,
        input_ids_BL: Tensor,
        position_ids_BL: Tensor,
        document_ids_BL: Tensor,
        targets_BL: Tensor | None = None,
        gradient_scale: float = 1.0,
        read_out: Callable[[Decoder, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Runs the decoder over packed documents.

        Args:
          input_ids_BL: token ids.
          position_ids_BL: position in its document; restarts at 0 in each.
          document_ids_BL: document of the row; -1 is padding.
          targets_BL: the token (with a ranking head, the item) each position has to predict, already shifted by the
            caller; -100 where none counts. Not for scalar heads.
          gradient_scale: what the caller multiplies the loss by before its backward pass; see `cross_entropy_sum`.
          read_out: turns hidden states [B, L, D] into what is returned, in place of the above, while the head's weight
            is gathered. It is given this module.

        Returns:
          With targets, the cross entropy summed over them, a scalar in FP32; 0, with zero gradients, when none counts.
          Without targets, the hidden states [B, L, D] after the final norm; with an output head its numbers in FP32:
          [B, L] of a scalar head, [B, L, items] of a ranking head.
        """
        assert targets_BL is None or self.num_outputs > 1, "a scalar head has no targets"
        # Waits for the device, so it comes before there is work.
        trained = None if targets_BL is None else TrainedTokens.of(targets_BL)
        context = BatchContext.of(self.config, position_ids_BL, document_ids_BL)
        x_BLD = self._embed(input_ids_BL)
        for layer in self.layers:
            x_BLD = layer(x_BLD, context)
        x_BLD = self.final_norm(x_BLD)
        if read_out is not None:
            return read_out(self, x_BLD)
        if trained is None:
            return self._outputs(x_BLD) if self.output_head else x_BLD
        return cross_entropy_sum(
            x_BLD.flatten(0, 1),
            self.head_weight(),
            trained,
            self.loss_chunk_tokens,
            self.num_outputs,
            soft_cap=None if self.output_head else self.config.logit_soft_cap,
            gradient_scale=gradient_scale,
            vocabulary=self.vocabulary_slice,
        )

    def _embed(self, input_ids_BL: Tensor) -> Tensor:
        x_BLD = self.embedding(input_ids_BL)
        if self.config.embedding_scale == 1:
            return x_BLD
        # Rounded to the compute type first, as it is in transformers and in what serves the model.
        return x_BLD * torch.tensor(self.config.embedding_scale, dtype=x_BLD.dtype).item()

    def _outputs(self, hidden_BLD: Tensor) -> Tensor:
        if self.num_outputs == 1:
            # Straight to [B, L]: FSDP2 hooks into what is returned, which is better no view.
            return functional.linear(hidden_BLD, self.score.weight[0]).float()
        return self.score(hidden_BLD)[..., : self.num_outputs].float()

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """[B, L, vocabulary] in FP32, without the padded rows. For tests and checks: training never holds them all."""
        logits_BLV = functional.linear(hidden_BLD, self.head_weight())[..., : self.config.vocabulary_size].float()
        cap = self.config.logit_soft_cap
        return logits_BLV if cap is None else cap * torch.tanh(logits_BLV / cap)

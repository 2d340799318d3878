"""The small model: a Qwen3-MoE of 8 layers with 32 experts each, of which a token takes 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Qwen3MoeForCausalLM

LAYERS, EXPERTS, TOP_K = 8, 32, 4
HIDDEN, EXPERT_WIDTH = 128, 64
CONTEXT = 512


def make_model(vocabulary: int, end: int) -> Qwen3MoeForCausalLM:
    """The model with random weights; the shape of Qwen3-MoE, so that nothing special reads it."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        moe_intermediate_size=EXPERT_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return Qwen3MoeForCausalLM(config)


def balance_loss(router_logits: tuple[Tensor, ...]) -> Tensor:
    """Load-balancing loss of Switch Transformer (arXiv 2101.03961, eq. 4-6), mean over layers.

    Per layer E * sum(f * P) / K: 1 where the load f and the mean probability P are both even.
    transformers' own sums over layers first, so that one layer's skew can hide another's.
    """
    losses = []
    for logits in router_logits:
        probability = torch.softmax(logits.float(), dim=-1)
        chosen = torch.topk(probability, TOP_K, dim=-1).indices.flatten()
        load = torch.bincount(chosen, minlength=EXPERTS).float() / len(chosen)
        losses.append(EXPERTS * (load * probability.mean(dim=0)).sum())
    return torch.stack(losses).mean()

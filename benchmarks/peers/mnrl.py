"""sentence-transformers' multiple-negatives ranking losses in a bare training loop.

Its Trainer is left out, which favours it: no data loader, no logging, no accelerate. The loop tokenises with
its `preprocess`, as its collator does, and takes torch's fused AdamW.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from rayembed.model.configuration import LoraSettings
from rayembed.model.lora import attach_lora

# Name -> arguments of the cached loss; "plain" is the loss without a cache.
SETTINGS: dict[str, dict[str, int]] = {
    "plain": {},
    "rows 16": {"mini_batch_size": 16},
    "rows 32": {"mini_batch_size": 32},
    "rows 64": {"mini_batch_size": 64},
    "tokens 2048": {"mini_batch_num_tokens": 2048},
    "tokens 4096": {"mini_batch_num_tokens": 4096},
}


class Peer:
    """A model in sentence-transformers' own modules, its loss and its optimizer."""

    def __init__(
        self,
        checkpoint: Path,
        lora: LoraSettings,
        adapters: Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype,
        max_length: int,
        temperature: float,
        learning_rate: float,
        clipping: float,
    ):
        self.model = _load(checkpoint, dtype, max_length)
        backbone = self.model[0].auto_model
        attach_lora(backbone, lora).to(dtype)  # adapters too, as DeepSpeed does with ours
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(adapters[f"backbone.{name}"])
        self.model.train()
        self._temperature, self._clipping = temperature, clipping
        self._weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=learning_rate, weight_decay=0.0, fused=True)
        self.use("plain")

    def use(self, setting: str) -> None:
        """Choose one of SETTINGS."""
        if setting == "plain":
            self._loss: Any = MultipleNegativesRankingLoss(self.model, scale=1 / self._temperature)
        else:
            self._loss = CachedMultipleNegativesRankingLoss(
                self.model, scale=1 / self._temperature, **SETTINGS[setting]
            )

    def step(self, columns: Sequence[Sequence[str]], prompt: str) -> torch.Tensor:
        """One step on columns of queries, positives and negatives; returns the loss before it."""
        queries, *documents = columns
        features = [self.model.preprocess(list(queries), prompt=prompt)]
        features += [self.model.preprocess(list(texts)) for texts in documents]
        loss = self._loss(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, self._clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()


def _load(checkpoint: Path, dtype: torch.dtype, max_length: int) -> SentenceTransformer:
    # With a chat template sentence-transformers would wrap each text in a conversation.
    without_template = shutil.ignore_patterns("chat_template*")
    backbone = checkpoint / "backbone"
    shutil.copytree(checkpoint / "tokenizer", backbone, ignore=without_template, dirs_exist_ok=True)
    transformer = Transformer(
        str(backbone),
        max_seq_length=max_length,
        model_kwargs={"dtype": dtype, "attn_implementation": "sdpa"},
    )
    for layer in transformer.auto_model.layers:
        # The configuration's `is_causal` decides the mask; where a batch needs none, SDPA asks the module.
        layer.self_attn.is_causal = False
    pooling = Pooling(transformer.get_embedding_dimension(), "mean", include_prompt=False)
    # No Normalize: the loss's cosine does it.
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")

"""Masked next-token prediction: the module, its batches, and one step.

Shapes: T packed tokens, M masked tokens, V vocabulary, D hidden width, S sources of the blend.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.common.paths import fetch
from rayembed.contract.contract import end_id
from rayembed.contract.packing import PackedBatch, pack_ids, split_packed
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.collate import TrainingBatch
from rayembed.losses import MNTPConfig
from rayembed.losses.mntp import mask_tokens, masked_next_token
from rayembed.model.backbone import read_config
from rayembed.model.export import shards
from rayembed.training.distributed import largest_over_ranks, sum_over_ranks, world_size
from rayembed.training.resources import StepTimer
from rayembed.training.stage import Stage
from rayembed.training.step import StepOutput, spoiled_unless_finite


class MaskedLanguageModel(nn.Module):
    """A backbone and its frozen language-model head; the backbone is named as in an EmbeddingModel."""

    def __init__(self, backbone: PreTrainedModel, head_VD: torch.Tensor):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(head_VD.shape[1], head_VD.shape[0], bias=False, dtype=backbone.dtype)
        self.head.weight = nn.Parameter(head_VD.to(backbone.dtype), requires_grad=False)

    def forward(self, batch: PackedBatch, before_M: torch.Tensor) -> torch.Tensor:
        """Logits (M, V) at the given positions of the packed row."""
        output = self.backbone(
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.position_ids_T.unsqueeze(0),
            use_cache=False,
            packed_lengths=batch.lengths,
        )
        return self.head(output.last_hidden_state[0, before_M])


def language_model_head(base: Path | str, device: torch.device | str = "cpu") -> torch.Tensor:
    """Weights (V, D) that turn a base model's states into next-token logits; read alone, as they are stored.

    Args:
        base: local Hugging Face folder, or a hub id where a network exists.
        device: where they go.

    Raises:
        CheckpointError: the base model was saved without them.
    """
    if not (folder := fetch(base)).is_dir():
        folder = Path(snapshot_download(str(base), allow_patterns=["*.json", "*.safetensors"]))
    tied = read_config(folder).tie_word_embeddings
    for ending in ("lm_head.weight", *(["embed_tokens.weight"] if tied else [])):
        for file in shards.weight_files(folder):
            with safe_open(file, framework="pt", device=str(device)) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no dictionary
                    if name.endswith(ending):
                        return tensors.get_tensor(name)
    raise CheckpointError(
        f"base model {base} has no language-model head, which a stage of kind mntp needs; use a folder "
        "with lm_head.weight, or a model whose embeddings serve as its head"
    )


@dataclass(frozen=True)
class MaskedBatch:
    """One worker's masked texts.

    Attributes:
        packed: the texts with masks.
        before_M: position before each masked token in the packed row, ascending.
        token_M: the tokens that were masked.
        source_M: position of each one's source in the blend.
    """

    packed: PackedBatch
    before_M: torch.Tensor
    token_M: torch.Tensor
    source_M: torch.Tensor

    def to(self, device: torch.device | str) -> "MaskedBatch":
        """Copy with all tensors on `device`."""
        return replace(
            self,
            packed=self.packed.to(device),
            before_M=self.before_M.to(device),
            token_M=self.token_M.to(device),
            source_M=self.source_M.to(device),
        )


def mask_id(tokenizer: PreTrainedTokenizerBase, loss: MNTPConfig) -> int:
    """Id of the mask token.

    Raises:
        ConfigError: the text is not one token.
    """
    ids = tokenizer(loss.mask_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"mask_token {loss.mask_token!r} is {len(ids)} tokens for this tokenizer; choose a text of one"
        )
    return ids[0]


def mask_batch(
    batch: TrainingBatch, loss: MNTPConfig, *, mask: int, end: int | None, seed: int
) -> MaskedBatch:
    """Mask the queries of a batch on the CPU; seed, step and row alone decide, not the number of workers."""
    lengths = batch.packed.lengths.texts
    texts = batch.packed.input_ids_T[: batch.packed.num_tokens].split(list(lengths))
    order = batch.packed.order_N.tolist()
    ids, starts, chosen = [], [], []
    for query in range(batch.num_queries):
        packed_text = order[query]
        source, row = int(batch.source_Q[query]), batch.rows[query]
        start = lengths[packed_text] - batch.packed.pooled_lengths.texts[packed_text]
        masked, places = mask_tokens(
            texts[packed_text].tolist(),
            first=start,
            share=loss.masked_share,
            mask_id=mask,
            end_id=end,
            generator=np.random.default_rng([seed, batch.step, source, row]),
        )
        ids.append(masked)
        starts.append(start)
        chosen.append(places)
    packed = pack_ids(ids, starts)
    offsets = np.cumsum([0, *packed.lengths.texts])
    entries: list[tuple[int, int, int]] = []
    for query, places in enumerate(chosen):
        original, offset = texts[order[query]], int(offsets[int(packed.order_N[query])])
        entries.extend(
            (offset + place - 1, int(original[place]), int(batch.source_Q[query])) for place in places
        )
    columns = torch.tensor(sorted(entries), dtype=torch.long).reshape(-1, 3)
    return MaskedBatch(packed, columns[:, 0], columns[:, 1], columns[:, 2])


class MaskedStep:
    """Mask the batch's texts and predict what was there."""

    def __init__(self, stage: Stage, device: torch.device):
        [loss] = stage.settings.loss
        assert isinstance(loss, MNTPConfig)
        tokenizer = load_tokenizer(stage.stream.tokenizer)
        self._loss = loss
        self._mask, self._end = mask_id(tokenizer, loss), end_id(tokenizer)
        self._seed = stage.seed
        self._num_sources = len(stage.settings.blend)
        self._budget = stage.training.chunk_tokens
        self._device = device

    def backward(self, wrapped: Any, batch: TrainingBatch, timer: StepTimer) -> StepOutput:
        """Leave the gradient in the parameters; called by all ranks."""
        return masked_backward(
            wrapped, self._masked(batch), self._num_sources, self._device, timer, self._budget
        )

    def forward(self, wrapped: Any, batch: PackedBatch) -> torch.Tensor:
        """Logits of the batch's first token; called by all ranks."""
        return wrapped(batch.to(self._device), torch.zeros(1, dtype=torch.long, device=self._device))

    def _masked(self, batch: TrainingBatch) -> MaskedBatch:
        return mask_batch(batch, self._loss, mask=self._mask, end=self._end, seed=self._seed)


def masked_backward(
    wrapped: Any,
    batch: MaskedBatch,
    num_sources: int,
    device: torch.device,
    timer: StepTimer,
    tokens_per_chunk: int | None = None,
) -> StepOutput:
    """Leave the gradient of the mean over all ranks' masked tokens in the parameters; called by all ranks.

    The loss is a sum over texts, so chunks need no second forward pass.
    """
    chunks = [batch.packed] if tokens_per_chunk is None else split_packed(batch.packed, tokens_per_chunk)
    rounds = 1 if tokens_per_chunk is None else largest_over_ranks(len(chunks))
    starts = np.cumsum([0, *(chunk.num_tokens for chunk in chunks)])
    # Found before the batch moves to the device, so that nothing waits for it: `before_M` ascends.
    edges = np.searchsorted(batch.before_M.numpy(), starts).tolist()
    batch, chunks = batch.to(device), [chunk.to(device) for chunk in chunks]
    total = sum_over_ranks(torch.tensor(float(len(batch.token_M)), device=device))
    scale = world_size() / total.clamp(min=1.0)
    losses, correct = [], []
    for turn in range(rounds):
        # A rank with fewer chunks than others takes part in their collectives with its last one, for nothing.
        idle = turn >= len(chunks)
        index = min(turn, len(chunks) - 1)
        inside = slice(edges[index], edges[index + 1])
        with timer.phase("forward"):
            logits_MV = wrapped(chunks[index], batch.before_M[inside] - int(starts[index]))
            token_M = batch.token_M[inside]
            losses_M = masked_next_token(logits_MV, token_M)
        with timer.phase("backward"):
            wrapped.set_gradient_accumulation_boundary(turn == rounds - 1)
            wrapped.backward(spoiled_unless_finite(losses_M.sum() * (scale * (not idle))))
        if not idle:
            losses.append(losses_M.detach())
            correct.append((logits_MV.detach().argmax(dim=1) == token_M).float())
    losses_M, correct_M = torch.cat(losses), torch.cat(correct)
    zeros_S = torch.zeros(num_sources, device=device)
    counts_S = zeros_S.index_add(0, batch.source_M, torch.ones_like(losses_M))
    values = {"loss": losses_M, "accuracy": correct_M}
    return StepOutput(
        loss=losses_M.sum() * scale,
        sums_S={name: zeros_S.index_add(0, batch.source_M, value) for name, value in values.items()},
        counts_S=dict.fromkeys(values, counts_S),
    )

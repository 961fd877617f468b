"""A checkpoint as one graph in the format of ONNX or OpenVINO: padded tokens in, unit vectors out.

    input_ids           (N, L) int64, padded on the right
    attention_mask      (N, L) int64, 1 for tokens of the text
    instruction_tokens  (N) int64, leading tokens that are not pooled; only where the contract leaves them out
    vectors             (N, D) fp32 of length 1

N and L are free in every call. The graph is the model's own packed pass: a row of N texts of L tokens each,
whose padding a mask hides.
"""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from rayembed.common.errors import ResourceError
from rayembed.common.paths import atomic_directory, atomic_write
from rayembed.contract import Contract
from rayembed.contract.packing import PackedBatch
from rayembed.model.attention import PaddedLengths
from rayembed.model.checkpoint import load_model
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.export.modules_json import plain_tokenizer, prompts_by_name, tokens_problem

logger = logging.getLogger(__name__)

PROMPTS_FILE = "prompts.json"
_INPUTS = ("input_ids", "attention_mask", "instruction_tokens")


class PaddedModel(nn.Module):
    """An embedding model that takes padded texts."""

    def __init__(self, embedder: EmbeddingModel):
        super().__init__()
        self.embedder = embedder

    def forward(
        self, ids_NL: torch.Tensor, mask_NL: torch.Tensor, unpooled_N: torch.Tensor | None = None
    ) -> torch.Tensor:
        """fp32 unit vectors (N, D)."""
        count, length = ids_NL.shape
        places_L, texts_N = torch.arange(length), torch.arange(count)
        real_NL = pooled_NL = mask_NL != 0
        if unpooled_N is not None:
            pooled_NL = real_NL & (places_L >= unpooled_N[:, None])
        # How many tokens are pooled is known only when the graph runs. So all go to the head, the others and
        # a copy of the last one at the end, as a text that `order_N` leaves out. Of two texts `. a b` and
        # `c d`, where . is not pooled and the second is padded, a b c d come first; . and twice the padding
        # are the third text.
        row = count * length
        text_index_P = torch.where(pooled_NL, texts_N[:, None], count).flatten()
        text_index_P = torch.cat([text_index_P, texts_N.new_full((1,), count)])
        order_P = (text_index_P * (row + 1) + torch.arange(row + 1)).argsort()
        text_index_P = text_index_P[order_P]
        ends_N = pooled_NL.sum(1).cumsum(0)
        bounds = torch.cat([ends_N.new_zeros(1), ends_N, ends_N.new_full((1,), row + 1)])
        same_text_PP = text_index_P[:, None] == text_index_P
        batch = PackedBatch(
            ids_NL.flatten(),
            places_L.expand(count, length).flatten(),
            order_P.clamp(max=row - 1),
            text_index_P,
            PaddedLengths((), 0, torch.arange(count + 1) * length, real_NL[:, None].expand(-1, length, -1)),
            PaddedLengths((), 0, bounds, same_text_PP[None]),
            texts_N,
        )
        return self.embedder(batch)


def export_graph(checkpoint: Path, out: Path, layout: Literal["onnx", "openvino"]) -> None:
    """Write a checkpoint in fp32 as a graph, with a tokenizer that needs no more than `tokenizers`.

    prompts.json has what goes before a text, by name of the task, and its `instruction_tokens`.

    Raises:
        CheckpointError: the folder is incomplete or damaged.
        ResourceError: a package that writes graphs is missing.
    """
    _require_packages("onnx", "onnxscript", *(["openvino"] if layout == "openvino" else []))
    model = load_model(checkpoint)
    contract = model.contract
    with_instruction = not contract.pool_instruction and model.embedder.config.pooling.type != "eos"
    tokenizer: Any = plain_tokenizer(checkpoint, contract)
    prompts = prompts_by_name(contract)
    if problem := tokens_problem(checkpoint, contract, sorted({*prompts.values()}), tokenizer):
        logger.warning("tokens of the exported tokenizer differ from those of rayembed: %s", problem)
    tokenizer.backend_tokenizer.enable_truncation(contract.max_length)
    tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    with atomic_directory(out) as temporary:
        if layout == "onnx":
            _write_onnx(model.embedder, temporary / "model.onnx", with_instruction=with_instruction)
        else:
            _write_openvino(model.embedder, temporary, with_instruction=with_instruction)
        tokenizer.backend_tokenizer.save(str(temporary / "tokenizer.json"))
        named = {name: _prompt(prompt, contract, model.tokenizer) for name, prompt in prompts.items()}
        atomic_write(temporary / PROMPTS_FILE, json.dumps(named, indent=2, ensure_ascii=False) + "\n")


def _prompt(prompt: str, contract: Contract, tokenizer: Any) -> dict[str, Any]:
    [tokens] = contract.tokenize_prefixed(tokenizer, ["a"], prompt).pool_starts
    return {"text": prompt, "instruction_tokens": tokens}


def _require_packages(*names: str) -> None:
    if missing := [name for name in names if find_spec(name) is None]:
        raise ResourceError(
            f"to write this layout, {' and '.join(missing)} must be installed: "
            'pip install "rayembed[onnx,openvino]"'
        )


@torch.no_grad()
def traced(embedder: EmbeddingModel, *, with_instruction: bool) -> torch.export.ExportedProgram:
    """The padded model's program. Two texts of three tokens are traced; names make both sizes free."""
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens")
    ids_NL, unpooled_N = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    example = (ids_NL, torch.ones_like(ids_NL), unpooled_N)[: 3 if with_instruction else 2]
    sizes = ({0: texts, 1: tokens}, {0: texts, 1: tokens}, {0: texts})[: len(example)]
    return torch.export.export(PaddedModel(embedder).eval(), example, dynamic_shapes=sizes)


def _write_onnx(embedder: EmbeddingModel, path: Path, *, with_instruction: bool) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses packages that no graph here needs
    torch.onnx.export(
        traced(embedder, with_instruction=with_instruction), (), path,
        dynamo=True, external_data=True, verbose=False,
        input_names=_INPUTS[: 3 if with_instruction else 2], output_names=["vectors"],
    )  # fmt: skip


def _write_openvino(embedder: EmbeddingModel, folder: Path, *, with_instruction: bool) -> None:
    """By way of ONNX: OpenVINO's reader of torch's programs lacks operations."""
    import openvino

    with TemporaryDirectory() as between:
        path = Path(between) / "model.onnx"
        _write_onnx(embedder, path, with_instruction=with_instruction)
        graph = openvino.convert_model(path)
        openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)

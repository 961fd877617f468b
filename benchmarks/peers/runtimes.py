"""The same decoder with mean pooling by OpenVINO and by ONNX Runtime; padded batches, sorted by length.

Made from transformers' own model, as sentence-transformers' backends of these names make theirs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


class MeanPooled(torch.nn.Module):
    """Token ids and mask (N, L) -> unit vectors; padding is masked, attention goes both ways."""

    def __init__(self, decoder: Any):
        super().__init__()
        self.decoder = decoder
        for layer in decoder.layers:
            layer.self_attn.is_causal = False

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D)."""
        scores = ((1.0 - mask.float()) * -1e9)[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        states = self.decoder(input_ids=ids, attention_mask=scores, use_cache=False).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)


class Runtime:
    """`SentenceTransformer.encode` in short: tokenise, sort by length, pad, run, put back."""

    def __init__(self, tokenizer: Any, run: Run, longest: int):
        self._tokenizer, self._run, self._longest = tokenizer, run, longest

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Vectors in the order of the texts."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ids = [text[: self._longest] for text in encoded]
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        vectors: list[Any] = [None] * len(ids)
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            mask = np.arange(len(ids[members[0]])) < np.array([len(ids[m]) for m in members])[:, None]
            padded = np.zeros(mask.shape, np.int64)
            padded[mask] = np.concatenate([ids[member] for member in members])
            for member, vector in zip(members, self._run(padded, mask.astype(np.int64)), strict=True):
                vectors[member] = vector
        return np.stack(vectors)


def load_runtimes(backbone: Path, tokenizer: Any, precision: str, folder: Path) -> dict[str, Runtime]:
    """Those that are installed: OpenVINO in fp32 or bf16, ONNX Runtime in fp32.

    ONNX Runtime multiplies no bf16 on CPUs, so it takes part in fp32 alone.
    """
    found = {}
    for name in _LOADERS:
        if name == "openvino" or precision == "fp32":
            try:
                found[name] = load_runtime(name, backbone, tokenizer, precision, folder)
            except ImportError as error:
                print(f"without {name}: {error}")
    return found


def load_runtime(name: str, backbone: Path, tokenizer: Any, precision: str, folder: Path) -> Runtime:
    """One of them; ImportError where it is not installed. `folder` takes the files that it needs."""
    decoder = AutoModel.from_pretrained(backbone, dtype=torch.float32, attn_implementation="sdpa")
    return Runtime(tokenizer, _LOADERS[name](MeanPooled(decoder).eval(), precision, folder), 512)


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(2, 12, dtype=torch.int64), torch.ones(2, 12, dtype=torch.int64)


def _openvino(model: MeanPooled, precision: str, folder: Path) -> Run:
    import openvino

    with torch.no_grad():
        graph = openvino.convert_model(
            model, example_input=_example(), input=[openvino.PartialShape([-1, -1])] * 2
        )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    return lambda ids, mask: compiled([ids, mask])[0]


def _onnxruntime(model: MeanPooled, precision: str, folder: Path) -> Run:
    import onnxruntime

    axes = {"ids": {0: "texts", 1: "tokens"}, "mask": {0: "texts", 1: "tokens"}, "vectors": {0: "texts"}}
    target = folder / "model.onnx"
    torch.onnx.export(
        model, _example(), str(target), input_names=["ids", "mask"], output_names=["vectors"],
        dynamic_axes=axes, dynamo=False,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"ids": ids, "mask": mask})[0]


_LOADERS = {"openvino": _openvino, "onnxruntime": _onnxruntime}

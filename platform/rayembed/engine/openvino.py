"""Passes of a decoder on a CPU by OpenVINO: short ones, and those of texts of nearly one length.

A pass of a few tokens through torch is mostly the work around its kernels. One text of 12 tokens took 2.4
times the processor time in bf16 and 2.6 times in fp32, 512 tokens 1.05 times. Of 4,096 tokens in texts of one
length, torch computes 1.1 to 1.3 times as long in bf16 and 1.0 to 1.1 times in fp32. Other passes stay with
torch, which needs no padding. The graph is written out here: for 4 layers of SmolLM2-135M that takes 1 s, and
tracing torch, as an export does once (model/export/graph.py), 6 to 19 s.

Shapes: N texts, L tokens of the longest one, D hidden width, W width of a head.
"""

import logging
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from rayembed.contract.packing import PackedBatch
from rayembed.model.embedding_model import EmbeddingModel

logger = logging.getLogger(__name__)

SHORT_PASS = 512  # tokens up to which OpenVINO takes any pass
_LITTLE_PADDING = 0.05  # of the tokens of a longer pass; with more torch is as fast
_MOST_PADDING = 0.125  # of the tokens of a padded batch; more costs more than another call
_FAMILIES = ("mistral", "qwen2", "qwen3")
_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino_decoder(
    embedder: EmbeddingModel, dtype: torch.dtype, device: torch.device
) -> "OpenVinoDecoder | None":
    """The decoder of an embedder, or None where OpenVINO is not installed or cannot compute it.

    It computes fp32 and bf16 on CPUs, for heads that pool the last layer's states. It copies the weights.
    """
    fits = device.type == "cpu" and dtype in _FORMATS and not embedder.pooling.all_layers
    config = embedder.backbone.config
    is_known = config.model_type in _FAMILIES and config.hidden_act == "silu"
    if not fits or not is_known or find_spec("openvino") is None:
        return None
    logger.info("OpenVINO computes passes of up to %d tokens, or of nearly one length", SHORT_PASS)
    return OpenVinoDecoder(embedder.backbone, dtype)


class OpenVinoDecoder:
    """A decoder's compiled graph; threads take turns."""

    def __init__(self, backbone: Any, dtype: torch.dtype):
        import openvino

        self._rotary = backbone.rotary_emb
        self._causal = bool(backbone.config.is_causal)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _FORMATS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # several processes would share the first cores
        }
        self._lock = threading.Lock()
        self._request = (
            openvino.Core().compile_model(_graph(backbone), "CPU", settings).create_infer_request()
        )

    def takes(self, batch: PackedBatch) -> bool:
        """Whether it computes a pass faster than torch."""
        texts, tokens = batch.lengths.texts, batch.num_tokens
        return tokens <= SHORT_PASS or texts[0] * len(texts) <= (1 + _LITTLE_PADDING) * tokens

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """fp32 states of the pooled tokens, as `PackedBatch.pooled_P` lists them."""
        ids_T, start, states = batch.input_ids_T.numpy(), 0, []
        for texts in _padded_groups(batch.lengths.texts):
            tokens = sum(texts)
            states.append(self._states(ids_T[start : start + tokens], texts))
            start += tokens
        return torch.cat(states).index_select(0, batch.pooled_P)

    def _states(self, ids_T: np.ndarray, texts: tuple[int, ...]) -> torch.Tensor:
        longest = texts[0]
        real_NL = np.arange(longest) < np.array(texts)[:, None]
        ids_NL = np.zeros(real_NL.shape, np.int64)
        ids_NL[real_NL] = ids_T
        mask = np.where(real_NL, np.float32(0), np.float32(-1e9))[:, None, None]
        if self._causal:
            mask = np.minimum(mask, np.triu(np.full((longest, longest), np.float32(-1e9)), 1))
        cos, sin = self._positions(longest)
        with self._lock:  # the next call overwrites the output
            self._request.infer([ids_NL, mask, cos, sin], share_inputs=True)
            return torch.from_numpy(self._request.get_output_tensor(0).data[real_NL])  # a copy

    def _positions(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of the rotary angles, (1, 1, length, W) each."""
        cos, sin = self._rotary(torch.zeros(1), torch.arange(length).unsqueeze(0))
        return cos.unsqueeze(1).numpy(), sin.unsqueeze(1).numpy()


def _padded_groups(texts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Neighbours in a batch, longest first, that are padded to the length of the first.

    40 39 38 12 11 become 40 39 38 with 3 of 120 tokens wasted, and 12 11 with 1 of 24.
    """
    start, tokens = 0, 0
    for end, length in enumerate(texts):
        whole = texts[start] * (end + 1 - start)
        if whole - tokens - length > _MOST_PADDING * whole:
            yield texts[start:end]
            start, tokens = end, 0
        tokens += length
    yield texts[start:]


def _graph(backbone: Any) -> Any:
    """The decoder: token ids (N, L), mask (N, 1, 1 or L, L), cosines, sines -> states (N, L, D)."""
    import openvino
    from openvino import opset13 as op

    config = backbone.config
    width = backbone.layers[0].self_attn.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads

    def constant(weight: torch.Tensor) -> Any:
        return op.constant(weight.detach().float().numpy())

    def number(value: float) -> Any:
        return op.constant(np.float32(value))

    def linear(states: Any, *layers: Any) -> Any:
        weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
        product = op.matmul(states, constant(weight), False, True)
        if layers[0].bias is None:
            return product
        return op.add(product, constant(torch.cat([layer.bias for layer in layers])))

    def norm(states: Any, layer: Any) -> Any:
        mean = op.reduce_mean(op.power(states, number(2)), op.constant([-1]), keep_dims=True)
        scale = op.divide(number(1), op.sqrt(op.add(mean, number(layer.variance_epsilon))))
        return op.multiply(op.multiply(states, scale), constant(layer.weight))

    def by_head(states: Any, count: int, layer: Any = None) -> Any:
        split = op.reshape(states, op.constant([0, 0, count, width]), True)
        return op.transpose(split if layer is None else norm(split, layer), op.constant([0, 2, 1, 3]))

    def rotated(states: Any) -> Any:
        first, second = op.variadic_split(
            states, op.constant(-1), op.constant([width // 2, width // 2])
        ).outputs()
        turned = op.concat([op.multiply(second, number(-1)), first], -1)
        return op.add(op.multiply(states, cos), op.multiply(turned, sin))

    def repeated(states: Any) -> Any:
        if heads == groups:
            return states
        copies = op.constant([1, 1, heads // groups, 1, 1])
        many = op.broadcast(op.unsqueeze(states, op.constant(2)), copies, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(many, op.constant([0, heads, -1, width]), True)

    def attention(states: Any, layer: Any) -> Any:
        query_width, key_width = heads * width, groups * width
        joined = linear(states, layer.q_proj, layer.k_proj, layer.v_proj)
        parts = op.constant([query_width, key_width, key_width])
        query, key, value = op.variadic_split(joined, op.constant(-1), parts).outputs()
        query = rotated(by_head(query, heads, getattr(layer, "q_norm", None)))
        key = rotated(by_head(key, groups, getattr(layer, "k_norm", None)))
        attended = op.scaled_dot_product_attention(
            query, repeated(key), repeated(by_head(value, groups)), mask, number(layer.scaling)
        )
        flat = op.reshape(
            op.transpose(attended, op.constant([0, 2, 1, 3])), op.constant([0, 0, query_width]), True
        )
        return linear(flat, layer.o_proj)

    def feedforward(states: Any, layer: Any) -> Any:
        joined = linear(states, layer.gate_proj, layer.up_proj)
        inner = layer.down_proj.in_features
        gate, up = op.variadic_split(joined, op.constant(-1), op.constant([inner, inner])).outputs()
        return linear(op.multiply(op.swish(gate), up), layer.down_proj)

    ids, mask = op.parameter([-1, -1], np.int64), op.parameter([-1, 1, -1, -1], np.float32)
    cos, sin = op.parameter([1, 1, -1, width], np.float32), op.parameter([1, 1, -1, width], np.float32)
    states = op.gather(constant(backbone.embed_tokens.weight), ids, op.constant(0))
    for layer in backbone.layers:
        states = op.add(states, attention(norm(states, layer.input_layernorm), layer.self_attn))
        states = op.add(states, feedforward(norm(states, layer.post_attention_layernorm), layer.mlp))
    return openvino.Model([norm(states, backbone.norm)], [ids, mask, cos, sin], "decoder")

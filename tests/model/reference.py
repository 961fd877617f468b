"""NV-Embed and its pooling variants in straight tensor algebra, one text and one head at a time.

Written from the papers alone and sharing no code with the package, so that the tests compare two derivations.
Weights come in a dictionary by the names of the published checkpoint.
"""

import math

import torch


def layer_norm(states, weights, prefix):
    centred = states - states.mean(-1, keepdim=True)
    scaled = centred / (states.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[prefix + "weight"] + weights[prefix + "bias"]


def rms_norm(states, weight, epsilon):
    return states / (states.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def gelu(values):
    return values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))


def geglu_feedforward(states, weights, prefix):
    hidden = states @ weights[prefix + "net.0.weight"].T + weights[prefix + "net.0.bias"]
    half = hidden.shape[-1] // 2
    gated = hidden[:, :half] * gelu(hidden[:, half:])
    return gated @ weights[prefix + "net.2.weight"].T + weights[prefix + "net.2.bias"]


def attention(queries, context, weights, prefix, heads):
    """Scaled dot-product attention over `context`; the rows of to_kv are all keys, then all values."""
    query = queries @ weights[prefix + "to_q.weight"].T
    key_value = context @ weights[prefix + "to_kv.weight"].T
    inner = query.shape[1]
    key, value = key_value[:, :inner], key_value[:, inner:]
    width = inner // heads
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(width), dim=-1)
        results.append(scores @ value[:, part])
    return torch.cat(results, dim=1) @ weights[prefix + "to_out.weight"].T


def latent_block(states, weights, heads):
    """Token states of one text behind the latent block: tokens ask, latents answer."""
    first, second = "cross_attend_blocks.0.", "cross_attend_blocks.1."
    tokens = layer_norm(states, weights, first + "norm.")
    latents = layer_norm(weights["latents"], weights, first + "norm_context.")
    states = states + attention(tokens, latents, weights, first + "fn.", heads)
    return states + geglu_feedforward(layer_norm(states, weights, second + "norm."), weights, second + "fn.")


def self_attention_block(states, weights, heads):
    """The latent block with the text's own tokens as context."""
    tokens = layer_norm(states, weights, "attention_norm.")
    states = states + attention(tokens, tokens, weights, "attention.", heads)
    return states + geglu_feedforward(
        layer_norm(states, weights, "feedforward_norm."), weights, "feedforward."
    )


def multi_layer_vector(layers, weights, heads):
    """One vector from the states of all layers of one text: latents ask, layers answer."""
    summaries = torch.stack([states.mean(0) for states in layers]) + weights["layer_embeddings"]
    queries = layer_norm(weights["latents"], weights, "attend.norm.")
    context = layer_norm(summaries, weights, "attend.norm_context.")
    latents = weights["latents"] + attention(queries, context, weights, "attend.fn.", heads)
    latents = latents + geglu_feedforward(
        layer_norm(latents, weights, "transform.norm."), weights, "transform.fn."
    )
    return latents.mean(0)


def rotate(vectors, theta):
    """Rotary position embedding of (tokens, width): coordinate i turns with coordinate i + width / 2."""
    tokens, width = vectors.shape
    half = width // 2
    turned = torch.empty_like(vectors)
    for position in range(tokens):
        for index in range(half):
            angle = position * theta ** (-2 * index / width)
            cosine, sine = math.cos(angle), math.sin(angle)
            left, right = vectors[position, index], vectors[position, index + half]
            turned[position, index] = left * cosine - right * sine
            turned[position, index + half] = right * cosine + left * sine
    return turned


def decoder_states(ids, weights, config, *, causal=False):
    """Last hidden states of a Mistral decoder for one text, without a causal mask unless asked for."""
    states = weights["embed_tokens.weight"][ids]
    width = config.hidden_size // config.num_attention_heads
    sharing = config.num_attention_heads // config.num_key_value_heads
    theta = config.rope_parameters["rope_theta"]
    forbidden = (
        torch.ones(len(ids), len(ids)).triu(1).bool() if causal else torch.zeros(len(ids), len(ids)).bool()
    )
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        normed = rms_norm(states, weights[prefix + "input_layernorm.weight"], config.rms_norm_eps)
        query, key, value = (
            normed @ weights[prefix + f"self_attn.{name}_proj.weight"].T for name in ("q", "k", "v")
        )
        heads = []
        for head in range(config.num_attention_heads):
            own = slice(head * width, (head + 1) * width)
            shared = slice(head // sharing * width, (head // sharing + 1) * width)
            scores = rotate(query[:, own], theta) @ rotate(key[:, shared], theta).T / math.sqrt(width)
            scores = scores.masked_fill(forbidden, -math.inf)
            heads.append(torch.softmax(scores, dim=-1) @ value[:, shared])
        states = states + torch.cat(heads, dim=1) @ weights[prefix + "self_attn.o_proj.weight"].T
        normed = rms_norm(states, weights[prefix + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = normed @ weights[prefix + "mlp.gate_proj.weight"].T
        up = normed @ weights[prefix + "mlp.up_proj.weight"].T
        states = states + (gate * torch.sigmoid(gate) * up) @ weights[prefix + "mlp.down_proj.weight"].T
    return rms_norm(states, weights["norm.weight"], config.rms_norm_eps)


def nv_embed_vector(ids, pool_start, backbone, head, config, heads):
    """Unit vector of one text: decoder, latent block, mean over the pooled positions, normalised."""
    states = latent_block(decoder_states(ids, backbone, config), head, heads)
    mask = torch.tensor([0.0] * pool_start + [1.0] * (len(ids) - pool_start))
    pooled = (states * mask[:, None]).sum(0) / mask.sum()
    return pooled / pooled.pow(2).sum().sqrt()

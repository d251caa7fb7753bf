"""A slow ParScale written from the published semantics: loops over rows and streams, and nothing of transformers.

It reads a state dict with the official names and the configuration's plain numbers. Every stream of every row is one
forward pass of its own, with the prefix explicitly in front of the keys and values.
"""

import math

import torch
import torch.nn.functional as F


def rms_norm(x, weight, eps):
    return weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x_THd, positions, theta):
    """Rotary embedding in the half-split layout, at the given positions."""
    half = x_THd.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=x_THd.dtype) / half)
    angle = (positions.to(x_THd.dtype)[:, None] * frequency)[:, None, :]
    left, right = x_THd[..., :half], x_THd[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def attention(state, name, config, x_TD, stream):
    T = x_TD.shape[0]
    H, G = config.num_attention_heads, config.num_key_value_heads
    q = linear(state, f"{name}.q_proj", x_TD).view(T, H, -1)
    k = linear(state, f"{name}.k_proj", x_TD).view(T, G, -1)
    v = linear(state, f"{name}.v_proj", x_TD).view(T, G, -1)
    if f"{name}.q_norm.weight" in state:
        q = rms_norm(q, state[f"{name}.q_norm.weight"], config.rms_norm_eps)
        k = rms_norm(k, state[f"{name}.k_norm.weight"], config.rms_norm_eps)
    positions = torch.arange(T)
    theta = config.rope_parameters["rope_theta"]
    q, k = rotate(q, positions, theta), rotate(k, positions, theta)
    K = 0
    if f"{name}.prefix_k" in state:
        prefix_k = state[f"{name}.prefix_k"][stream].transpose(0, 1)  # [K, G, d], never rotated
        prefix_v = state[f"{name}.prefix_v"][stream].transpose(0, 1)
        K = prefix_k.shape[0]
        k, v = torch.cat([prefix_k, k]), torch.cat([prefix_v, v])
    heads = []
    for head in range(H):
        keys, values = k[:, head // (H // G)], v[:, head // (H // G)]
        rows = []
        for i in range(T):
            visible = K + i + 1
            score = keys[:visible] @ q[i, head] / math.sqrt(q.shape[-1])
            rows.append(score.softmax(0) @ values[:visible])
        heads.append(torch.stack(rows))
    return linear(state, f"{name}.o_proj", torch.cat(heads, dim=-1))


def stream_hidden(state, config, ids_T, stream):
    """Final hidden states [T, D] of one stream of one row, after the last norm."""
    x = state["model.embed_tokens.weight"][ids_T]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        normed = rms_norm(x, state[f"{layer}.input_layernorm.weight"], config.rms_norm_eps)
        x = x + attention(state, f"{layer}.self_attn", config, normed, stream)
        normed = rms_norm(x, state[f"{layer}.post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = F.silu(linear(state, f"{layer}.mlp.gate_proj", normed))
        x = x + linear(state, f"{layer}.mlp.down_proj", gate * linear(state, f"{layer}.mlp.up_proj", normed))
    return rms_norm(x, state["model.norm.weight"], config.rms_norm_eps)


def aggregate(state, streams_PTD, smooth):
    """Mixture [T, D] and weights [T, P], one token at a time."""
    P, T, _ = streams_PTD.shape
    mixed, weights = [], []
    for t in range(T):
        features = torch.stack([streams_PTD[p, t] for p in range(P)], dim=1).flatten()  # index h·P + p
        hidden = F.silu(linear(state, "model.aggregate_layer.0", features))
        weight = linear(state, "model.aggregate_layer.2", hidden).softmax(0)
        weight = weight * (1 - smooth) + smooth / P
        weights.append(weight)
        mixed.append(sum(weight[p] * streams_PTD[p, t] for p in range(P)))
    return torch.stack(mixed), torch.stack(weights)


def forward(state, config, ids_BT):
    """Logits [B, T, V] and stream weights [B, T, P] (None at P = 1)."""
    logits, weights = [], []
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    for ids in ids_BT:
        streams = torch.stack([stream_hidden(state, config, ids, p) for p in range(config.parscale_n)])
        if config.parscale_n == 1:
            mixed = streams[0]
        else:
            mixed, weight = aggregate(state, streams, config.parscale_attn_smooth)
            weights.append(weight)
        logits.append(mixed @ head.T)
    return torch.stack(logits), torch.stack(weights) if weights else None


def loss(logits_BTV, ids_BT):
    """Mean next-token cross entropy in nats."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def first_streams(state, config_P, p):
    """The state of the first p of P streams: their prefixes, input columns and output rows of the aggregator."""
    kept = {}
    for name, tensor in state.items():
        if name.endswith(("prefix_k", "prefix_v")):
            tensor = tensor[:p]
        elif name == "model.aggregate_layer.0.weight":
            columns = [h * config_P + s for h in range(tensor.shape[1] // config_P) for s in range(p)]
            tensor = tensor[:, columns]
        elif name.startswith("model.aggregate_layer.2."):
            tensor = tensor[:p]
        kept[name] = tensor
    return kept

"""Latency of a decoding step at batch 1: dynamic cache, static cache, static cache compiled, and what bounds them.

Every figure is for one token after the prompt: the time of a long `generate` less that of one which makes a single
token. `linear` is every linear layer of the model once, in order, on the rows that it sees in a step.

Claims on a CPU: compiled at P = 1 takes at most 1.4 × its linear layers alone, at P = 8 at most 1.5 × P = 1.
Claims on a GPU: compiled is at least 5 × as fast as the dynamic cache, P = 8 takes at most 1.35 × P = 1, and a step
reads its weights, prefixes and cache at more than 60 % of the bandwidth that a copy in memory reaches. There, `kernels`
is the time in which the GPU works; the rest of a token's time it waits for the loop of `generate`.
"""

import statistics
import time

import torch
from harness import kernel_seconds, parser, ratio, report, side_by_side
from shapes import SHAPES, random_backbone
from torch import nn
from transformers import CompileConfig

from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config

CPU_CLAIMS = {"compiled_over_linear at P = 1": 1.4, "over_one_stream at P = 8": 1.5}
GPU_CLAIMS = {"dynamic_over_compiled": 5, "over_one_stream at P = 8": 1.35, "bandwidth_share": 0.6}


def generate(model, ids, new_tokens, **options):
    def run():
        out = model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, **options)
        assert out.shape[1] == ids.shape[1] + new_tokens

    return run


def linear_layers(model, P, steps):
    """All linear layers `steps` times: P rows in the streams, one in the aggregator and the head."""
    layers = [
        (layer, torch.randn(P if ".layers." in name else 1, layer.in_features, dtype=model.dtype, device=model.device))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]

    @torch.no_grad()
    def run():
        for _ in range(steps):
            for layer, x in layers:
                layer(x)

    return run


def candidates(models, backbone, ids, new_tokens, compiled_only):
    """What is timed, by (what, P); P = 0 is the plain backbone. Pairs: many new tokens, and only the first."""
    static = {"cache_implementation": "static", "max_cache_len": ids.shape[1] + new_tokens + 1}
    kinds = {
        "dynamic": {},
        "static": {**static, "disable_compile": True},
        "compiled": {**static, "compile_config": CompileConfig()},
    }
    found = {}
    for P, model in models.items():
        for kind in ["compiled"] if compiled_only else kinds:
            found[kind, P] = generate(model, ids, new_tokens + 1, **kinds[kind])
            found[f"first {kind}", P] = generate(model, ids, 1, **kinds[kind])
        found["linear", P] = linear_layers(model, P, new_tokens)
    found["static", 0] = generate(backbone, ids, new_tokens + 1, **kinds["static"])
    found["first static", 0] = generate(backbone, ids, 1, **kinds["static"])
    return found


def seconds_per_token(seconds, new_tokens):
    """Subtracts the time of the first token round by round."""
    result = {}
    for (kind, P), times in seconds.items():
        first = seconds.get((f"first {kind}", P), [0.0] * len(times))
        if not kind.startswith("first "):
            result[kind, P] = [(a - b) / new_tokens for a, b in zip(times, first, strict=True)]
    return result


def kernel_seconds_per_token(candidates, P, new_tokens):
    """Seconds in which a GPU works on a token of compiled decoding."""
    first = kernel_seconds(candidates["first compiled", P])
    return (kernel_seconds(candidates["compiled", P]) - first) / new_tokens


def copy_bandwidth(device, num_bytes=2**28):
    """Bytes a second that a copy in memory reads and writes, the best of ten."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * num_bytes / best


def bytes_read(model, P, cache_length):
    """Bytes that a step cannot but read: all weights (tied ones once, as the head) and the keys and values."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = P * cache_length * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return (sum(p.numel() for p in model.parameters()) + cache) * model.dtype.itemsize


def row(P, per_token, model, cache_length, bandwidth, kernels=None):
    compiled = per_token["compiled", P]
    num_bytes = bytes_read(model, P, cache_length)
    found = {
        "P": P,
        "compiled_over_linear": ratio(compiled, per_token["linear", P]),
        "compiled_over_plain_static": ratio(compiled, per_token["static", 0]),
        "bandwidth_share": num_bytes / statistics.median(compiled) / bandwidth,
    }
    if kernels is not None:
        found["kernels_ms"] = 1e3 * kernels
        found["bandwidth_share_of_kernels"] = num_bytes / kernels / bandwidth
    if ("compiled", 1) in per_token:
        found["over_one_stream"] = ratio(compiled, per_token["compiled", 1])
    if ("dynamic", P) in per_token:
        found["dynamic_over_compiled"] = ratio(per_token["dynamic", P], compiled)
        found["static_over_compiled"] = ratio(per_token["static", P], compiled)
    milliseconds = {kind: [1e3 * t for t in times] for (kind, p), times in per_token.items() if p == P}
    found["ms_per_token"] = {
        kind: {"median": statistics.median(times), "min": min(times)} for kind, times in milliseconds.items()
    }
    return found


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--P", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M", help="random weights of these sizes")
    arguments.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    arguments.add_argument("--new", type=int, default=32, help="tokens to time")
    arguments.add_argument("--compiled-only", action="store_true", help="leave out the uncompiled ParScale paths")
    args = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    backbone = random_backbone(args.shape, torch.bfloat16, device).eval()
    vocabulary = backbone.config.vocab_size
    models = {}
    for P in args.P:
        context = torch.randint(vocabulary, (P, 48))
        models[P] = convert_to_parscale_model(backbone, create_parscale_config(P), context_ids=context)
    ids = torch.randint(vocabulary, (1, args.prompt), device=device)

    runs = candidates(models, backbone, ids, args.new, args.compiled_only)
    seconds = side_by_side(runs, args.rounds)
    per_token = seconds_per_token(seconds, args.new)
    bandwidth = copy_bandwidth(device)
    kernels = {P: kernel_seconds_per_token(runs, P, args.new) for P in models} if device == "cuda" else {}
    rows = [row(P, per_token, model, args.prompt + args.new, bandwidth, kernels.get(P)) for P, model in models.items()]
    claims = GPU_CLAIMS if device == "cuda" else CPU_CLAIMS
    summary = {"shape": args.shape, "claims": claims, "copy_gigabytes_per_second": bandwidth / 1e9}
    report([summary, *rows], args.json)


if __name__ == "__main__":
    main()

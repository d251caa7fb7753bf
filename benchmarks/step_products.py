"""A PEFT step against its own matrix products.

Claim: forward and backward of a step take at most 1.6 × the time of exactly the matrix products that the step cannot do
without, run one after the other in the same type on the model's own weights.

The products, for R = P·B·T rows, D hidden, K prefix tokens, T tokens, V vocabulary:
  linear layers   R rows through every one, and back to their inputs (the first layer's queries, keys and values need no
                  way back); nothing for their weights, which are frozen
  attention       two forward and four backward for every head, on (T + 1) / 2 + K keys, what a query sees on average
  aggregator      two forward; back to inputs and weights
  head            B·T rows, and back

`products` is their time alone, `compiled` that of a step with `training.compile`; `…_TFLOPs` are the rates that each
reaches, counting the operations of the products.

On a GPU `model_flop_utilisation` is the rate of the compiled step over the one given with --peak-tflops, and
`…_of_kernels` the same for the time in which the GPU works, without that in which it waits for the host.
"""

import statistics

import torch
from harness import kernel_seconds, ratio, report, side_by_side
from training_step import peft_models, peft_step, step_parser

from parcontrol.training.compiling import compile_layers
from parcontrol.training.freed_memory import freed_memory_kept
from parcontrol.training.loss import CHUNK_TOKENS_ACCELERATOR, CHUNK_TOKENS_CPU, output_head

CLAIM = 1.6


def products(model, B, T):
    """All products of a step as (left, right) factors, in the order of layers; every factor is real memory."""
    config, inner = model.config, model.model
    P, K, device, dtype = inner.active_streams, config.prefix_length, model.device, model.dtype
    made = {}

    def some(*shape):
        # One tensor of each shape: activations of the step come from memory as rarely or often as these.
        if shape not in made:
            made[shape] = torch.randn(shape, device=device).to(dtype)
        return made[shape]

    R = P * B * T
    pairs = []
    for number, layer in enumerate(inner.layers):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                pairs.append((some(R, module.in_features), module.weight.T))
                if number or not name.endswith(("q_proj", "k_proj", "v_proj")):
                    pairs.append((some(R, module.out_features), module.weight))
        attention = layer.self_attn
        heads, d, keys = P * B * config.num_attention_heads, attention.head_dim, (T + 1) // 2 + K
        q, k, scores = some(heads, T, d), some(heads, keys, d), some(heads, T, keys)
        pairs += [(q, k.mT), (scores, k)]  # scores, output
        pairs += [(scores.mT, q), (q, k.mT), (scores, k), (scores.mT, q)]  # to values, probabilities, queries, keys
    if P > 1:
        for module in inner.aggregate_layer:
            if isinstance(module, torch.nn.Linear):
                x, y = some(B * T, module.in_features), some(B * T, module.out_features)
                weight = module.weight.to(dtype)
                pairs += [(x, weight.T), (y, weight), (y.T, x)]
    # In the chunks that the loss takes: the logits of all positions at once would only be slower.
    head = output_head(model)
    chunk = CHUNK_TOKENS_ACCELERATOR if model.device.type == "cuda" else CHUNK_TOKENS_CPU
    for start in range(0, B * T, chunk):
        n = min(chunk, B * T - start)
        pairs += [(some(n, head.shape[1]), head.T), (some(n, head.shape[0]), head)]
    return pairs


def operations(pairs):
    """Multiplications and additions of all products."""
    return sum(2 * left.numel() * right.shape[-1] for left, right in pairs)


@torch.no_grad()
def multiply(pairs):
    for left, right in pairs:
        left @ right


def as_they_are(step, model):
    """The step with its layers as they are, though they could run compiled and with our kernel."""

    def run():
        attentions = [layer.self_attn for layer in model.model.layers]
        kernels = [attention.__dict__.pop("causal_kernel", None) for attention in attentions]
        with torch.compiler.set_stance("force_eager"):
            step()
        for attention, kernel in zip(attentions, kernels, strict=True):
            attention.causal_kernel = kernel

    return run


def main():
    arguments = step_parser(__doc__)
    arguments.add_argument("--peak-tflops", type=float, help="of the GPU's data sheet, for bfloat16 without sparsity")
    args = arguments.parse_args()
    rows = []
    for _, model, ids_BT in peft_models(args):
        B, T = ids_BT.shape
        pairs = products(model, B, T)
        head = output_head(model)
        # Kernels for one shape alone, as in training: at the second, torch would compile for any.
        torch.compiler.reset()
        compile_layers(model, model.dtype)
        candidates = {
            "step": as_they_are(peft_step(model, head, ids_BT), model),
            "compiled": peft_step(model, head, ids_BT, compiled=True),
            "products": lambda pairs=pairs: multiply(pairs),
        }
        with freed_memory_kept(model.device):  # as the steps of a run have it
            seconds = side_by_side(candidates, args.rounds)
        found = {"P": model.config.parscale_n, "T": T, "claim": CLAIM}
        for name in ("step", "compiled"):
            found[f"{name}_over_products"] = ratio(seconds[name], seconds["products"])
        work = operations(pairs)
        for name, times in seconds.items():
            found[f"{name}_s"] = statistics.median(times)
            found[f"{name}_TFLOPs"] = work / statistics.median(times) / 1e12
        if model.device.type == "cuda":
            found |= {f"{name}_kernels_s": kernel_seconds(candidates[name]) for name in ("step", "compiled")}
        if args.peak_tflops:
            found["model_flop_utilisation"] = found["compiled_TFLOPs"] / args.peak_tflops
            if "compiled_kernels_s" in found:
                rate = work / found["compiled_kernels_s"] / 1e12
                found["model_flop_utilisation_of_kernels"] = rate / args.peak_tflops
        rows.append(found)
    report(rows, args.json)


if __name__ == "__main__":
    main()

"""A PEFT step at P streams against the plain model's own work over P·B rows.

Claim: forward and backward of a step take at most 1.10 × (T = 256) or 1.25 × (T = 1024) the sum of
  (a) the inner transformers model, frozen, forward and backward to its input embeddings, over batch P·B, and
  (b) the ordinary head and cross_entropy with full logits over batch B.
"""

import statistics

import torch
import torch.nn.functional as F
from harness import parser, ratio, report, side_by_side
from shapes import SHAPES, random_backbone

from parcontrol.demo.model import get_model
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config, parscale_parameters
from parcontrol.parscale.loading import load_backbone
from parcontrol.training.device import without_packing_check
from parcontrol.training.loss import chunked_cross_entropy, output_head

CLAIMS = {256: 1.10, 1024: 1.25}


def peft_step(model, head, ids_BT, compiled=False):
    def run():
        with without_packing_check():  # as in training
            hidden = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        targets = ids_BT[:, 1:].flatten()
        chunked_cross_entropy(hidden[:, :-1].flatten(0, 1), head, targets, targets.numel(), compiled).backward()

    return run


def inner_model(backbone, ids_BT, P):
    rows = ids_BT.repeat(P, 1)

    def run():
        embeddings = backbone.get_input_embeddings()(rows).requires_grad_()
        hidden = backbone.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        hidden.backward(torch.ones_like(hidden))

    return run


def plain_head(backbone, ids_BT):
    shape = (*ids_BT.shape, backbone.config.hidden_size)
    hidden = torch.randn(shape, dtype=backbone.dtype, device=ids_BT.device, requires_grad=True)

    def run():
        logits = F.linear(hidden[:, :-1], backbone.lm_head.weight)
        F.cross_entropy(logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten()).backward()
        hidden.grad = None

    return run


def step_parser(description):
    """Arguments of the benchmarks of a step."""
    arguments = parser(description)
    arguments.add_argument("--P", type=int, nargs="+", default=[1, 2, 4])
    arguments.add_argument("--T", type=int, nargs="+", default=[256, 1024])
    arguments.add_argument("--tokens", type=int, default=1024, help="tokens B·T of a step")
    arguments.add_argument("--model", default=None, help="a model directory (default: the demo's SmolLM2-135M)")
    arguments.add_argument("--shape", choices=SHAPES, help="random weights of these sizes instead of a model")
    return arguments


def peft_models(args):
    """For each T and P: the frozen backbone, a model that trains over it, and random blocks of tokens [B, T]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.shape:
        backbone = random_backbone(args.shape, torch.bfloat16, device)
    else:
        backbone, _ = load_backbone(str(args.model or get_model()), dtype=torch.bfloat16, device=device)
    backbone.requires_grad_(False).train()
    for T in args.T:
        ids_BT = torch.randint(backbone.config.vocab_size, (max(args.tokens // T, 1), T), device=device)
        for P in args.P:
            context = torch.randint(backbone.config.vocab_size, (P, 48))
            model = convert_to_parscale_model(backbone, create_parscale_config(P), context_ids=context).train()
            for _, parameter in parscale_parameters(model):
                parameter.data = parameter.data.float()
            yield backbone, model, ids_BT


def main():
    args = step_parser(__doc__).parse_args()
    rows = []
    for backbone, model, ids_BT in peft_models(args):
        P, (B, T) = model.config.parscale_n, ids_BT.shape
        seconds = side_by_side(
            {
                "step": peft_step(model, output_head(model), ids_BT),
                "inner": inner_model(backbone, ids_BT, P),
                "head": plain_head(backbone, ids_BT),
            },
            args.rounds,
        )
        plain = [a + b for a, b in zip(seconds["inner"], seconds["head"], strict=True)]
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        step_over_plain = ratio(seconds["step"], plain)
        shape = {"P": P, "B": B, "T": T}
        rows.append({**shape, "step_over_plain": step_over_plain, "claim": CLAIMS.get(T), "seconds": medians})
    report(rows, args.json)


if __name__ == "__main__":
    main()

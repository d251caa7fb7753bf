"""`generate` at P streams against the plain model's `generate` over batch P.

Claim: at most 1.15 ×, greedy with the dynamic cache, the prompt and the number of new tokens being the same.
"""

import statistics

import torch
from harness import parser, ratio, report, side_by_side

from parcontrol.demo.model import get_model
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.parscale.loading import load_backbone

CLAIM = 1.15


def generate(model, ids, new_tokens):
    def run():
        out = model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        assert out.shape[1] == ids.shape[1] + new_tokens

    return run


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--P", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    arguments.add_argument("--new", type=int, default=32, help="tokens to generate")
    arguments.add_argument("--model", default=None, help="a model directory (default: the demo's SmolLM2-135M)")
    args = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone, _ = load_backbone(str(args.model or get_model()), dtype=torch.bfloat16, device=device)
    vocabulary = backbone.config.vocab_size

    rows = []
    for P in args.P:
        context = torch.randint(vocabulary, (P, 48))
        model = convert_to_parscale_model(backbone, create_parscale_config(P), context_ids=context)
        ids = torch.randint(vocabulary, (1, args.prompt), device=device)
        seconds = side_by_side(
            {
                "parscale": generate(model, ids, args.new),
                "plain": generate(backbone, ids.repeat(P, 1), args.new),
            },
            args.rounds,
        )
        per_token = {name: statistics.median(times) / args.new for name, times in seconds.items()}
        parscale_over_plain = ratio(seconds["parscale"], seconds["plain"])
        rows.append(
            {"P": P, "parscale_over_plain": parscale_over_plain, "claim": CLAIM, "seconds_per_token": per_token}
        )
    report(rows, args.json)


if __name__ == "__main__":
    main()

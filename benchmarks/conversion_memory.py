"""Peak memory of a conversion against the backbone's own.

Claim: at most 1.05 ×. Two processes load the same backbone; one also converts it with context prefixes. Compared are
the peaks of resident memory above what the imports alone take.
"""

import json
import subprocess
import sys

from harness import parser, report

from parcontrol.demo.model import get_model

CLAIM = 1.05
PROCESS = """
import json, sys, resource
import torch, transformers
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.parscale.loading import load_backbone
directory, P = sys.argv[1], int(sys.argv[2])
import transformers.models.llama.modeling_llama
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
imports = peak()
backbone, _ = load_backbone(directory, dtype=torch.bfloat16)
with torch.no_grad():  # weights are mapped from disk: a pass makes all of them resident
    backbone.model(input_ids=torch.zeros(max(P, 1), 48, dtype=torch.long))
if P:
    context = torch.randint(1000, (P, 48))
    convert_to_parscale_model(backbone, create_parscale_config(P), context_ids=context)
print(json.dumps({"peak": peak() - imports}))
"""


def peak_bytes(directory: str, P: int) -> int:
    """Peak resident memory above the imports, of loading and (P > 0) converting."""
    process = subprocess.run(
        [sys.executable, "-c", PROCESS, directory, str(P)], capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)["peak"]


def main():
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--P", type=int, nargs="+", default=[2, 4, 8])
    arguments.add_argument("--model", default=None, help="a model directory (default: the demo's SmolLM2-135M)")
    args = arguments.parse_args()
    directory = str(args.model or get_model())
    rows = []
    for P in args.P:
        pairs = [(peak_bytes(directory, P), peak_bytes(directory, 0)) for _ in range(args.rounds)]
        ratios = sorted(converted / plain for converted, plain in pairs)
        megabytes = {"converted": pairs[0][0] / 1e6, "plain": pairs[0][1] / 1e6}
        rows.append({"P": P, "converted_over_plain": ratios[len(ratios) // 2], "claim": CLAIM, "megabytes": megabytes})
    report(rows, args.json)


if __name__ == "__main__":
    main()

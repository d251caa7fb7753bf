"""Peak memory of a conversion against the backbone's own.

Claim: at most 1.05 ×, where the new parameters themselves are that small beside the backbone (their size is in the
output). Two processes load the same backbone; one also converts it with context prefixes. Compared are the peaks of
resident memory above what the imports alone take.
"""

import json
import subprocess
import sys

from harness import parser, ratio, report

from parcontrol.demo.model import get_model

CLAIM = 1.05
PROCESS = """
import json, sys, resource
import torch, transformers
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config, parscale_parameters
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
    model = convert_to_parscale_model(backbone, create_parscale_config(P), context_ids=context)
    new = sum(parameter.nbytes for _, parameter in parscale_parameters(model))
print(json.dumps({"peak": peak() - imports, "new": new if P else 0}))
"""


def measure(directory: str, P: int) -> dict[str, int]:
    """Bytes: peak resident memory above the imports, of loading and (P > 0) converting; size of new parameters."""
    process = subprocess.run(
        [sys.executable, "-c", PROCESS, directory, str(P)], capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)


def main():
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--P", type=int, nargs="+", default=[2, 4, 8])
    arguments.add_argument("--model", default=None, help="a model directory (default: the demo's SmolLM2-135M)")
    args = arguments.parse_args()
    directory = str(args.model or get_model())
    rows = []
    for P in args.P:
        pairs = [(measure(directory, P), measure(directory, 0)) for _ in range(args.rounds)]
        peaks = [[process["peak"] for process in processes] for processes in zip(*pairs, strict=True)]
        megabytes = {"plain": peaks[1][0] / 1e6, "new_parameters": pairs[0][0]["new"] / 1e6}
        rows.append({"P": P, "converted_over_plain": ratio(*peaks), "claim": CLAIM, "megabytes": megabytes})
    report(rows, args.json)


if __name__ == "__main__":
    main()

"""The peak memory of whole runs, and what `--dry-run` says of it.

Claim: they are within 10 % of each other. Each run takes three steps, with tokenizer, data, validations and checkpoint,
in a process of its own: SmolLM2-135M, and decoders of other architectures with random weights and its tokenizer, on the
demo's corpus. Memory is that of the device, on a CPU that of the process.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers
from harness import parser, report

from parcontrol.demo.corpus import build_corpus
from parcontrol.demo.model import get_model

CLAIMED_ERROR = 0.10
STEPS = 3
TRAIN = Path(__file__).resolve().parents[1] / "train_parscale.py"

# Sizes of the models with random weights, beside the tokenizer's vocabulary.
SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
WIDE = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 8, "num_attention_heads": 14}
MODELS = {
    "Qwen2": WIDE | {"num_key_value_heads": 2},
    "Qwen3": SMALL | {"num_key_value_heads": 4, "head_dim": 128},
    "Olmo2": SMALL | {"num_key_value_heads": 8},
    "Llama": SMALL | {"num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 4},
    "Phi3": SMALL | {"num_key_value_heads": 8, "sliding_window": None},
    "Gemma": SMALL | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
    "Starcoder2": SMALL | {"num_key_value_heads": 2, "sliding_window": None},
}
CHECKPOINTING = {"training.gradient_checkpointing": "true"}
COMPILED = {"training.compile": "true"}
# Model, P, B, T, streams per pass, what else is set.
RUNS = [
    ("SmolLM2-135M", 1, 1, 64, 1, {}),
    ("SmolLM2-135M", 1, 4, 256, 1, {}),
    ("SmolLM2-135M", 4, 2, 256, 4, {}),
    ("SmolLM2-135M", 8, 2, 128, 2, {}),
    ("SmolLM2-135M", 2, 2, 128, 2, {"training.mixed_precision": "fp32"}),
    ("SmolLM2-135M", 1, 1, 128, 1, {"data.num_shards": "30"}),
    ("SmolLM2-135M", 4, 4, 256, 1, CHECKPOINTING),
    ("SmolLM2-135M", 4, 4, 256, 4, CHECKPOINTING),
    ("SmolLM2-135M", 1, 1, 128, 1, COMPILED),
    ("SmolLM2-135M", 4, 4, 256, 4, COMPILED),
    ("SmolLM2-135M", 8, 2, 128, 2, COMPILED),
    ("Qwen2", 4, 1, 600, 1, {}),
    ("Qwen3", 4, 2, 256, 4, {}),
    ("Qwen3", 4, 2, 256, 4, COMPILED),
    ("Qwen3", 4, 4, 256, 4, CHECKPOINTING),
    ("Olmo2", 2, 2, 512, 2, {}),
    ("Llama", 4, 2, 256, 4, {}),
    ("Llama", 4, 4, 256, 4, CHECKPOINTING),
    ("Llama", 2, 2, 256, 2, {"training.mode": "full"}),
    ("Phi3", 2, 2, 512, 2, {}),
    ("Gemma", 2, 2, 256, 2, {}),
    ("Gemma", 4, 4, 256, 4, CHECKPOINTING),
    ("Starcoder2", 2, 2, 512, 2, {}),
]


def save_model(architecture: str, directory: Path) -> Path:
    """Saves a small decoder with random weights and SmolLM2's tokenizer."""
    if not directory.exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(get_model())
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        fields = MODELS[architecture] | ids | {"vocab_size": len(tokenizer)}
        config = getattr(transformers, f"{architecture}Config")(**fields, tie_word_embeddings=True)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def train(*flags: str) -> str:
    """Runs the command and returns what it prints."""
    return subprocess.run([sys.executable, TRAIN, *flags], stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(model: Path, output: Path, P: int, B: int, T: int, streams_per_pass: int, settings: dict) -> dict:
    """Bytes that the plan predicts and that the run takes."""
    values = {
        "model.name": model,
        "parscale.P": P,
        "training.microbatch_size": B,
        "training.gradient_accumulation_steps": 1,
        "training.streams_per_pass": streams_per_pass,
        "training.tokens_per_run": STEPS * B * T,
        "training.warmup_tokens": 0,
        "data.repo": build_corpus(),
        "data.sequence_length": T,
        "data.validation_tokens": 2048,
        "output_dir": output,
    } | settings
    flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    gibibytes = float(re.search(r"~ ([\d.]+) GiB", train(*flags, "--dry-run"))[1])
    train(*flags)
    return {
        "predicted": gibibytes * 2**30,
        "measured": json.loads((output / "result.json").read_text())["peak_memory_bytes"],
    }


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("--model", nargs="*", default=["SmolLM2-135M", *MODELS], help="only these")
    args = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, *shape, settings) in enumerate(RUNS * args.rounds):
            if name not in args.model:
                continue
            model = get_model() if name == "SmolLM2-135M" else save_model(name, Path(scratch, name))
            peak = measure(model, Path(scratch, f"run_{number}"), *shape, settings)
            row = {"model": name, **dict(zip(("P", "B", "T", "streams_per_pass"), shape, strict=True)), **settings}
            row["megabytes"] = {what: round(value / 1e6) for what, value in peak.items()}
            row["error"] = round(peak["predicted"] / peak["measured"] - 1, 3)
            row["claim"] = CLAIMED_ERROR
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    report(rows, args.json)


if __name__ == "__main__":
    main()

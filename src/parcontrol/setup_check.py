"""Checks of the machine before a run: each is ok, a warning or failed, with the remedy.

Only what every run needs can fail; what some runs can do without is a warning.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parcontrol.config import load_config
from parcontrol.mirror import MIRROR_VARIABLE, local_copy, mirror_directory

if TYPE_CHECKING:
    import torch

GIB = 2**30
MINIMUM_PYTHON = (3, 11)
# The default backbone takes 1 GiB in bf16; activations at P = 8 take several more.
MEMORY_NEEDED, MEMORY_COMFORTABLE = 2 * GIB, 6 * GIB
# The default model takes 1 GiB in the Hub's cache, and a final checkpoint as much again.
DISK_NEEDED, DISK_COMFORTABLE = 1 * GIB, 5 * GIB
HUB_TIMEOUT_SECONDS = 5.0
INSTALL = "pip install -r requirements.txt"
ROUND_TRIP_TEXT = "ParScale: 48 tokens × P streams, naïve façade, 数据 🙂\n\tindented  twice"


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `remedy` says what to do unless it is ok."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (not self.remedy), self


def main() -> int:
    """Prints the table of all checks; returns 1 when one failed, else 0."""
    checks = run_checks()
    Console().print(_table(checks))
    failed = [check.name for check in checks if check.status == "failed"]
    print(f"failed: {', '.join(failed)}" if failed else "This machine can train.")
    return 1 if failed else 0


def run_checks() -> list[Check]:
    """Returns the outcome of every check, in the order of the table."""
    groups: list[Callable[[], Iterable[Check]]] = [
        check_python,
        check_packages,
        check_devices,
        check_memory,
        check_disk,
        check_data_source,
        check_tokenizer,
        check_wandb,
    ]
    return [check for group in groups for check in group()]


def check_python() -> Iterator[Check]:
    """Python is new enough."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= MINIMUM_PYTHON:
        yield Check("Python", "ok", found)
    else:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        yield Check("Python", "failed", found, f"install Python {wanted} or newer")


def check_packages(pins_file: Path | None = None) -> Iterator[Check]:
    """What the package needs is there in a version that it allows, best in the tested one."""
    wrong = [text for text in map(_unmet, _runtime_requirements()) if text]
    if wrong:
        yield Check("Packages", "failed", "; ".join(wrong), INSTALL)
    else:
        yield Check("Packages", "ok", f"all {len(_runtime_requirements())} required ones")
    pins_file = pins_file or Path(__file__).parents[2] / "requirements.txt"
    if not pins_file.exists():
        yield Check("Pins", "warning", f"no {pins_file}", "run from a clone of the repository")
        return
    pins = read_pins(pins_file)
    other = [text for text in map(_differs, pins.items()) if text]
    if other:
        listed = ", ".join(other[:6]) + (f" and {len(other) - 6} more" if len(other) > 6 else "")
        yield Check("Pins", "warning", f"not as tested: {listed}", INSTALL)
    else:
        yield Check("Pins", "ok", f"all {len(pins)} as tested")


def read_pins(path: Path) -> dict[str, str]:
    """Returns the pinned version by normalised package name."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in pairs}


def check_devices() -> Iterator[Check]:
    """Every device multiplies matrices, in every type that runs use, to the right result."""
    try:
        import torch
    except ImportError as error:
        yield Check("Devices", "failed", f"torch cannot be imported: {error}", INSTALL)
        return
    devices = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    for device in (name for name, present in devices.items() if present):
        for dtype in (torch.float32, torch.bfloat16):
            yield _matmul_check(device, dtype)
    if not devices["cuda"] and not devices["mps"]:
        yield Check(
            "Accelerator",
            "warning",
            "no CUDA or MPS device",
            "none is needed; on the CPU take a small model, as `make demo` does",
        )


def check_memory() -> Iterator[Check]:
    """There is memory for the default model."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    remedy = "close other programs, or set data.sequence_length to 512"
    yield _enough("Memory", memory.available, MEMORY_NEEDED, MEMORY_COMFORTABLE, found, remedy)


def check_disk() -> Iterator[Check]:
    """There is room for models and runs."""
    for name, place in (("Disk: runs", Path("outputs")), ("Disk: models", _hub_cache())):
        existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        found = f"{free / GIB:.1f} GiB free at {existing}"
        remedy = "make room, or choose another place with output_dir or HF_HOME"
        yield _enough(name, free, DISK_NEEDED, DISK_COMFORTABLE, found, remedy)


def check_data_source() -> Iterator[Check]:
    """The default data can be read, from the mirror that is set or from the Hub."""
    repo = load_config().data.repo
    mirror = mirror_directory()
    if mirror:
        folder = mirror / "datasets" / repo
        if folder.is_dir():
            yield Check("Data", "ok", f"mirror holds {repo}")
        else:
            remedy = f"let {MIRROR_VARIABLE} name a folder with datasets/ and models/, or unset it"
            yield Check("Data", "failed", f"{MIRROR_VARIABLE}: there is no {folder}", remedy)
        return
    remedy = f"for runs offline set {MIRROR_VARIABLE} or data.repo to a folder; the demo needs none"
    try:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(repo, timeout=HUB_TIMEOUT_SECONDS).sha
    except Exception as error:  # whatever the reason is, it is what the table shows
        reason = (str(error).split("\n")[0] or type(error).__name__)[:120]
        yield Check("Data", "warning", f"the Hub cannot be read: {reason}", remedy)
    else:
        yield Check("Data", "ok", f"the Hub has {repo} at {str(commit)[:8]}")


def check_tokenizer() -> Iterator[Check]:
    """A tokenizer gives back the text that it was given."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        yield Check("Tokenizer", "failed", f"transformers cannot be imported: {error}", INSTALL)
        return
    directory = find_tokenizer()
    ids, text = _round_trip_in_memory() if directory is None else _round_trip(directory)
    source = "one made in memory" if directory is None else directory.name
    if text != ROUND_TRIP_TEXT:
        remedy = "reinstall tokenizers and transformers: " + INSTALL
        yield Check("Tokenizer", "failed", f"{source} gives back {text!r}", remedy)
    elif directory is None:
        remedy = "none is needed now: a run downloads its model's tokenizer"
        yield Check("Tokenizer", "warning", f"{len(ids)} tokens and back with {source}", remedy)
    else:
        yield Check("Tokenizer", "ok", f"{len(ids)} tokens and back with {source}")


def find_tokenizer() -> Path | None:
    """Returns a model directory with a tokenizer that is already on this machine, if any."""
    from huggingface_hub import try_to_load_from_cache

    from parcontrol.cache import cache_directory

    name = load_config().model.name
    mirrored = local_copy("models", name)
    cached = try_to_load_from_cache(name, "tokenizer.json")
    places = [mirrored] if mirrored else []
    places += [Path(cached).parent] if isinstance(cached, str) else []
    places += sorted((cache_directory() / "models").glob("*"))
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def check_wandb() -> Iterator[Check]:
    """Weights & Biases logs offline; a warning at most, for it is optional."""
    try:
        import wandb

        with tempfile.TemporaryDirectory() as directory:
            settings = wandb.Settings(silent=True, console="off", disable_git=True)
            run = wandb.init(project="setup-check", mode="offline", dir=directory, settings=settings)
            run.log({"check": 1})
            run.finish()
            written = list(Path(directory).rglob("*.wandb"))
    except Exception as error:  # whatever the reason is, it is what the table shows
        reason = str(error).split("\n")[0][:120]
        yield Check("W&B", "warning", f"no offline run: {reason}", f"optional; {INSTALL}")
        return
    if not written:
        yield Check("W&B", "warning", "an offline run left no file", f"optional; {INSTALL}")
        return
    yield Check("W&B", "ok", "an offline run was written; online needs an account")


def _table(checks: list[Check]) -> Table:
    colours = {"ok": "green", "warning": "yellow", "failed": "bold red"}
    table = Table(title="ParControl setup")
    for column in ("check", "result", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for check in checks:
        colour = colours[check.status]
        texts = (Text(check.name), Text(check.status, style=colour))
        table.add_row(*texts, Text(check.detail), Text(check.remedy))
    return table


def _enough(name: str, amount: float, needed: float, comfortable: float, found: str, remedy: str) -> Check:
    if amount >= comfortable:
        return Check(name, "ok", found)
    return Check(name, "warning" if amount >= needed else "failed", found, remedy)


def _runtime_requirements() -> list[Requirement]:
    declared = [Requirement(text) for text in requires("parcontrol") or []]
    return [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]


def _installed(name: str) -> Version | None:
    try:
        return Version(version(name))
    except PackageNotFoundError:
        return None


def _unmet(requirement: Requirement) -> str:
    found = _installed(requirement.name)
    if found is None:
        return f"{requirement.name} is missing"
    if found not in requirement.specifier:
        return f"{requirement.name} {found} is not {requirement.specifier}"
    return ""


def _differs(pin: tuple[str, str]) -> str:
    name, pinned = pin
    found = _installed(name)
    if found is None:
        return f"{name} is missing"
    # A local version, as in 2.13.0+cpu, is another build of the same release.
    return "" if found.public == pinned else f"{name} {found} (tested {pinned})"


def _matmul_check(device: str, dtype: torch.dtype) -> Check:
    import torch

    # Small integers are exact in every type, and so are their sums here: equality is the test.
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-4, 5, (64, 64), generator=generator)
    b = torch.randint(0, 2, (64, 4), generator=generator)
    name = f"{device} {str(dtype).removeprefix('torch.')}"
    try:
        product = (a.to(device, dtype) @ b.to(device, dtype)).float().cpu()
    except RuntimeError as error:
        remedy = f"train on another device, or with mixed_precision fp32 ({platform.platform()})"
        return Check(name, "failed", f"64 x 64 matrix product: {error}", remedy)
    if not torch.equal(product, (a @ b).float()):
        return Check(name, "failed", "wrong matrix product", "reinstall torch: " + INSTALL)
    if dtype is torch.bfloat16 and not _has_native_bf16(device):
        remedy = "set training.mixed_precision to auto or fp32, which is faster here"
        return Check(name, "warning", "emulated, not in hardware", remedy)
    return Check(name, "ok", _device_detail(device, dtype))


def _has_native_bf16(device: str) -> bool:
    import torch

    from parcontrol.training.device import has_native_bf16

    return has_native_bf16(torch.device(device))


def _device_detail(device: str, dtype: torch.dtype) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    if device == "cpu" and dtype is torch.bfloat16:
        known = torch.cpu.get_capabilities()
        return ", ".join(name for name in ("amx_bf16", "avx512_bf16", "bf16") if known.get(name))
    return f"{torch.get_num_threads()} threads" if device == "cpu" else "present"


def _round_trip(directory: Path) -> tuple[list[int], str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(ROUND_TRIP_TEXT, add_special_tokens=False).input_ids
    return ids, str(tokenizer.decode(ids, skip_special_tokens=False))


def _round_trip_in_memory() -> tuple[list[int], str]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.encode(ROUND_TRIP_TEXT).ids
    return ids, tokenizer.decode(ids)


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


if __name__ == "__main__":
    sys.exit(main())

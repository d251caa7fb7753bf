"""The setup check: each check says ok, warning or failed for the reason that there is."""

import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers
from packaging.requirements import Requirement

from parcontrol import setup_check
from parcontrol.setup_check import GIB, Check, read_pins


def only(checks: Iterable[Check]) -> Check:
    (check,) = checks
    return check


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(setup_check.check_python()).status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    old = only(setup_check.check_python())
    assert old.status == "failed"
    assert "3.11" in old.remedy


def test_packages_of_this_environment(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text(f"# pins\nnumpy=={version('numpy')}\ntorch=={version('torch').split('+')[0]}\n-e .\n")
    checks = by_name(setup_check.check_packages(pins))
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["Pins"].detail == "all 2 as tested"
    assert read_pins(pins).keys() == {"numpy", "torch"}


def test_other_versions_than_the_pins_are_a_warning(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("NumPy==0.0.1\nno_such_package==1.0\n")
    check = by_name(setup_check.check_packages(pins))["Pins"]
    assert check.status == "warning"
    assert f"numpy {version('numpy')} (tested 0.0.1)" in check.detail
    assert "no-such-package is missing" in check.detail
    assert by_name(setup_check.check_packages(tmp_path / "none.txt"))["Pins"].status == "warning"


def test_a_missing_or_too_old_requirement_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = [Requirement("no-such-package>=1"), Requirement("numpy>=1000"), Requirement("rich")]
    monkeypatch.setattr(setup_check, "_runtime_requirements", lambda: wrong)
    check = by_name(setup_check.check_packages(tmp_path / "none.txt"))["Packages"]
    assert check.status == "failed"
    assert check.detail == f"no-such-package is missing; numpy {version('numpy')} is not >=1000"
    assert "pip install -r requirements.txt" in check.remedy


def test_the_cpu_multiplies_in_both_types() -> None:
    checks = by_name(setup_check.check_devices())
    assert checks["cpu float32"].status == "ok"
    native = setup_check._has_native_bf16("cpu")
    assert checks["cpu bfloat16"].status == ("ok" if native else "warning")


def test_a_device_that_computes_wrongly_or_not_at_all_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a, b) + (a.dtype == torch.float32))
    assert by_name(setup_check.check_devices())["cpu float32"].status == "failed"

    def refuse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not implemented for this type")

    monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
    check = by_name(setup_check.check_devices())["cpu bfloat16"]
    assert check.status == "failed"
    assert "not implemented for this type" in check.detail


def test_emulated_bf16_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_check, "_has_native_bf16", lambda device: False)
    check = by_name(setup_check.check_devices())["cpu bfloat16"]
    assert check.status == "warning"
    assert "mixed_precision" in check.remedy


@pytest.mark.parametrize(("available", "status"), [(64, "ok"), (4, "warning"), (1, "failed")])
def test_memory(monkeypatch: pytest.MonkeyPatch, available: int, status: str) -> None:
    memory = SimpleNamespace(available=available * GIB, total=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    check = only(setup_check.check_memory())
    assert check.status == status
    assert f"{available}.0 of 64.0 GiB" in check.detail
    assert status == "ok" or "sequence_length to 512" in check.remedy


@pytest.mark.parametrize(("free", "status"), [(50, "ok"), (2, "warning"), (0, "failed")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup_check.shutil, "disk_usage", lambda path: SimpleNamespace(free=free * GIB))
    checks = by_name(setup_check.check_disk())
    assert {check.status for check in checks.values()} == {status}
    assert str(tmp_path) in checks["Disk: runs"].detail  # outputs/ is not there yet


def test_a_mirror_is_ok_only_if_it_holds_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARCONTROL_MIRROR", str(tmp_path))
    check = only(setup_check.check_data_source())
    assert check.status == "failed"
    assert str(tmp_path) in check.detail
    (tmp_path / "datasets" / "monology" / "pile-uncopyrighted").mkdir(parents=True)
    assert only(setup_check.check_data_source()).status == "ok"


def test_no_network_is_a_warning() -> None:
    """The tests run with the Hub switched off."""
    check = only(setup_check.check_data_source())
    assert check.status == "warning"
    assert "PARCONTROL_MIRROR" in check.remedy


def test_a_reachable_hub_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def dataset_info(self: object, repo: str, timeout: float) -> SimpleNamespace:
        asked.append(repo)
        return SimpleNamespace(sha="0123456789abcdef")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    check = only(setup_check.check_data_source())
    assert (check.status, asked) == ("ok", ["monology/pile-uncopyrighted"])
    assert "01234567" in check.detail


def test_a_local_tokenizer_makes_the_round_trip(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    monkeypatch.setattr(setup_check, "find_tokenizer", lambda: tiny_model_dir)
    check = only(setup_check.check_tokenizer())
    assert check.status == "ok"
    assert tiny_model_dir.name in check.detail


def test_without_a_local_tokenizer_one_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARCONTROL_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: None)
    assert setup_check.find_tokenizer() is None
    check = only(setup_check.check_tokenizer())
    assert check.status == "warning"
    # every byte of the text is one token of the alphabet, which has no others
    assert f"{len(setup_check.ROUND_TRIP_TEXT.encode())} tokens" in check.detail


def test_a_tokenizer_is_found_in_the_mirror_and_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_dir: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: None)
    monkeypatch.setenv("PARCONTROL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "small").symlink_to(tiny_model_dir)
    assert setup_check.find_tokenizer() == tmp_path / "cache" / "models" / "small"
    monkeypatch.setenv("PARCONTROL_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror" / "models" / "Qwen").mkdir(parents=True)
    (tmp_path / "mirror" / "models" / "Qwen" / "Qwen2.5-0.5B").symlink_to(tiny_model_dir)
    assert setup_check.find_tokenizer() == tmp_path / "mirror" / "models" / "Qwen" / "Qwen2.5-0.5B"


def test_a_tokenizer_that_loses_text_fails(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    monkeypatch.setattr(setup_check, "find_tokenizer", lambda: tiny_model_dir)
    decode = transformers.PreTrainedTokenizerFast.decode
    monkeypatch.setattr(
        transformers.PreTrainedTokenizerFast, "decode", lambda self, *a, **k: decode(self, *a, **k).strip("Pa")
    )
    check = only(setup_check.check_tokenizer())
    assert check.status == "failed"
    assert "rScale" in check.detail


def test_wandb_writes_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(setup_check.check_wandb()).status == "ok"
    monkeypatch.setitem(sys.modules, "wandb", None)
    check = only(setup_check.check_wandb())
    assert check.status == "warning"
    assert "optional" in check.remedy


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
def test_the_exit_code_follows_the_worst_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    remedy = "" if status == "ok" else "mend [it]"
    checks = [Check("First", "ok", "fine"), Check("Second", status, "what [Errno 2] it is", remedy)]  # type: ignore[arg-type]
    monkeypatch.setattr(setup_check, "run_checks", lambda: checks)
    monkeypatch.setenv("COLUMNS", "120")
    assert setup_check.main() == code
    out = capsys.readouterr().out
    for text in ("First", "Second", status, "what [Errno 2] it is", remedy):
        assert text in out
    assert ("failed: Second" in out) == bool(code)


def test_an_outcome_that_is_not_ok_needs_a_remedy() -> None:
    with pytest.raises(AssertionError):
        Check("x", "failed", "broken")

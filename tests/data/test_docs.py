"""The Python in docs/data.md works as written."""

import re
from pathlib import Path

import pytest

from tests.data.corpora import byte_tokenizer


def test_the_examples_run_in_order(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"tokenizer": byte_tokenizer()}
    examples = re.findall(r"^```python\n(.*?)^```", (repository / "docs/data.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, names)
    assert names["blocks"].shape == (16, 64)
    assert names["validation"].blocks.shape == (8, 64)
    assert names["state"]["position"]["tokens"] == 16 * 64

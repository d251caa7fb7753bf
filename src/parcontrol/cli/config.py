"""`parcontrol config reference`: every configuration key, as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from parcontrol.cli.parser import OneLineParser
from parcontrol.config import ConfigField, iter_fields, type_name

PREAMBLE = """\
# Configuration

<!-- Made by `parcontrol config reference > docs/configuration.md`; a test keeps it current. -->

Every key of a run's configuration, with its unit and default. A key is set in a YAML file

```yaml
inherits: base_config.yaml # optional: the file to build on, relative to this one
parscale:
  P: 2
```

or on the command line by its full name, which wins: `python train_parscale.py --parscale.P 2`.
Unknown keys are errors. Tokens are real tokens: nothing is padded. An optimiser step takes
`data.sequence_length` x `training.microbatch_size` x `training.gradient_accumulation_steps` tokens,
and a run takes the whole steps that `training.tokens_per_run` pays for.

`training.seed` and `data.seed` are two keys so that runs with different initialisations are compared
on the same tokens; `--seed` sets `training.seed` alone.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the reference of all configuration keys."""
    parser = OneLineParser(prog="parcontrol config", description="Explain the configuration keys.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("reference", help="print all keys as Markdown")
    parser.parse_args(argv)
    print(reference(), end="")
    return 0


def reference() -> str:
    """Returns docs/configuration.md."""
    sections = groupby(iter_fields(), key=lambda field: field.name.rpartition(".")[0])
    return PREAMBLE + "".join(_section(name, list(fields)) for name, fields in sections)


def _section(name: str, fields: list[ConfigField]) -> str:
    rows = [
        f"| `{field.name}` | {type_name(field.type).replace('|', chr(92) + '|')} "
        f"| `{_yaml(field.default)}` | {field.description} |"
        for field in fields
    ]
    header = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join(["", f"## {name or 'output'}", "", *header, *rows, ""])


def _yaml(value: object) -> str:
    """Returns a default as it stands in a YAML file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:_}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())

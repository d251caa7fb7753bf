"""The demonstration: a real model becomes a ParScale model, trains on real text, is loaded again."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import get_console
from rich.panel import Panel
from rich.text import Text

from parcontrol.analysis.figures import save_figure
from parcontrol.config import RunConfig, load_config
from parcontrol.demo import reload
from parcontrol.demo.corpus import build_corpus
from parcontrol.demo.model import get_model
from parcontrol.demo.report import facts, loss_figure, result_table
from parcontrol.runs import RunDirectory

CONFIG = Path(__file__).parents[3] / "configs" / "demo_config.yaml"
OUTPUT_DIRECTORY = "outputs/demo"
PROMPT = 'def read_lines(path):\n    """Return the lines of a text file as a list."""\n    with'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration; a second call shows what the first one made.

    Returns:
        0, or 1 when it could not be finished; errors are one message on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m parcontrol.demo", description=__doc__)
    parser.add_argument("--output-dir", default=OUTPUT_DIRECTORY, help="run directory (default: %(default)s)")
    parser.add_argument("--picture", type=Path, help="write the loss curve to this file too")
    arguments = parser.parse_args(argv)
    from parcontrol.training.errors import RunStoppedError

    console = get_console()
    try:
        console.print("[bold]Model[/]   SmolLM2-135M-Instruct from the package index, made once")
        model = get_model()
        console.print(f"        {model}")
        console.print("[bold]Corpus[/]  the Python standard library in the layout of the Pile, made once")
        corpus = build_corpus()
        console.print(f"        {corpus}")
        overrides = {"model.name": str(model), "data.repo": str(corpus), "output_dir": arguments.output_dir}
        demonstrate(load_config(CONFIG, overrides), arguments.picture)
    except (ValueError, RunStoppedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def demonstrate(config: RunConfig, picture_copy: Path | None = None) -> None:
    """Trains (or takes the finished run), reloads the model in a new process and reports.

    Raises:
        ValueError: the run cannot be started.
        RunStoppedError: the run cannot go on.
    """
    from parcontrol.training.run import run

    console = get_console()
    directory = RunDirectory(config.run_directory)
    if directory.finished:
        console.print(f"{directory.path} is already finished: delete it to train again")
    else:
        console.print(f"[bold]Training[/] into {directory.path}, P = {config.parscale.P}, {config.total_steps} steps")
    run(config)
    pictures = [directory.path / "loss_curve.png", *([picture_copy] if picture_copy else [])]
    for picture in pictures:
        save_figure(loss_figure(directory), picture)
    console.print("[bold]Reloading[/] in a new process, with transformers alone")
    name, text = generate_in_new_process(directory.final_dir, PROMPT)
    console.print(Panel(Text(text), title=f"{name} continues", title_align="left"))
    console.print(result_table(config))
    console.print(facts(config, pictures[0]))


def generate_in_new_process(model: Path, prompt: str) -> tuple[str, str]:
    """Returns the class and the text of a saved model that a new process loads and runs.

    The process knows nothing of this package: ``-P`` keeps its directory off the path, and the
    code comes from the model's own directory. It may not ask the Hub for anything either.
    """
    command = [sys.executable, "-P", reload.__file__, str(model.absolute()), prompt]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    if process.returncode != 0:
        raise RuntimeError(f"the saved model {model} could not be used:\n{process.stderr}")
    answer = json.loads(process.stdout.splitlines()[-1])
    return answer["class"], answer["text"]

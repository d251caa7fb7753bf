"""What the demonstration shows at its end: a loss curve and a table."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from parcontrol.analysis.figures import COLOURS, new_figure, tidy
from parcontrol.config import RunConfig
from parcontrol.diagnostics.memory import format_bytes
from parcontrol.logging_setup import log_file
from parcontrol.runs import RunDirectory


def loss_figure(run: RunDirectory) -> Figure:
    """Returns a run's losses over tokens: validation, training, and the backbone alone as a line."""
    records = run.read_metrics()
    result = run.read_result()
    backbone = result["backbone_validation_loss"]
    figure = new_figure(1, panel=(7.2, 4.2))
    axes = figure.subplots()
    label = f"training, mean of {run.read_config().training.log_interval_steps} steps"
    axes.plot(*_series(records, "loss"), color="0.8", linewidth=1.2, label=label, zorder=1)
    axes.axhline(backbone, color=COLOURS[3], linestyle="--", label=f"frozen backbone: {backbone:.3f}")
    tokens, losses = _series(records, "validation_loss")
    label = f"validation, P = {result['P']}: {losses[0]:.3f} to {losses[-1]:.3f}"
    axes.plot(tokens, losses, color=COLOURS[0], marker="o", markersize=4, linewidth=2, label=label)
    axes.set_xlabel("tokens trained on, thousands")
    axes.set_ylabel("loss, nats per token")
    axes.set_title(f"ParScale on {run.read_config().model.name.rsplit('/')[-1]}: prefixes and aggregator train")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def result_table(config: RunConfig) -> Table:
    """Returns the table that ends the demonstration."""
    run = RunDirectory(config.run_directory)
    result = run.read_result()
    table = Table(title=f"ParScale, P = {result['P']}: {Path(config.model.name).name}", title_style="bold")
    table.add_column("")
    table.add_column("validation loss, nats", justify="right")
    table.add_column("perplexity", justify="right")
    rows = {"frozen backbone": "backbone", "step 0": "initial", "final": "final"}
    for name, key in rows.items():
        loss, perplexity = (result[f"{key}_validation_{kind}"] for kind in ("loss", "perplexity"))
        style = "bold" if key == "final" else ""
        table.add_row(name, f"{loss:.4f}", f"{perplexity:.2f}", style=style)
    return table


def facts(config: RunConfig, picture: Path) -> Table:
    """Returns where everything is and what it took."""
    run = RunDirectory(config.run_directory)
    result = run.read_result()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")  # a path that is cut off is no use
    for name, value in _facts(config, run, result, picture).items():
        grid.add_row(name, value)
    return grid


def _facts(config: RunConfig, run: RunDirectory, result: dict[str, Any], picture: Path) -> dict[str, str]:
    minutes, seconds = divmod(round(result["seconds"]), 60)
    return {
        "tokens": f"{result['tokens']:,} in {result['steps']} steps",
        "time": f"{minutes} min {seconds} s, {result['tokens_per_second']:,.0f} tokens/s in training",
        "peak memory": format_bytes(result["peak_memory_bytes"]),
        "trained": f"{result['parameters_trained']:,} of {result['parameters_total']:,} parameters",
        "run directory": str(run.path),
        "checkpoint": str(run.final_dir),
        "loss curve": str(picture),
        "log": str(log_file(config.logging.directory, run.path.name)),
        "load it": f'AutoModelForCausalLM.from_pretrained("{run.final_dir}", trust_remote_code=True)',
    }


def _series(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Returns thousands of tokens and values of the records that hold `key`."""
    chosen = [record for record in records if key in record]
    return [record["tokens"] / 1000 for record in chosen], [record[key] for record in chosen]

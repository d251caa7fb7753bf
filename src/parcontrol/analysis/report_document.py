"""What a report says, in words, tables and plots: one content for the page and for Markdown.

Every number is formatted here and nowhere else, so that all forms of a report show the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import PurePath
from typing import Any

from matplotlib.figure import Figure

from parcontrol.analysis import law_plots, published, report_plots
from parcontrol.analysis.accelerators import DEFAULT_ACCELERATOR
from parcontrol.analysis.cost import GIB
from parcontrol.analysis.findings import Difference, Findings, StreamLaw, SweepFindings
from parcontrol.analysis.law import CONFIDENCE
from parcontrol.analysis.law_report import LawReport
from parcontrol.analysis.report_plots import Palette
from parcontrol.analysis.results import Run
from parcontrol.analysis.statistics import RESAMPLES, Interval
from parcontrol.analysis.validity import Check, grouped
from parcontrol.config import iter_fields
from parcontrol.diagnostics.collapse import collapsed

PERCENT = f"{100 * CONFIDENCE:.0f} %"
NONE = "–"
# Every key but the one that differs between any two runs without meaning anything.
_KEYS = [entry.name for entry in iter_fields() if entry.name != "output_dir"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text: `kind` is a class of the style sheet."""

    text: str
    kind: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table; `words` are the columns (by number) that hold words, of which `prose` are long ones."""

    caption: str
    header: list[str]
    rows: list[list[str | Cell]]
    words: tuple[int, ...] = (0,)
    prose: tuple[int, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot: `key` names its files, `alt` says what it shows to who cannot see it."""

    key: str
    alt: str
    caption: str
    figure: Figure
    wide: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading (`level` 2 or 3) and what stands below it."""

    key: str
    title: str
    level: int
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


@dataclass(frozen=True)
class Alert:
    """A check that did not pass, and the sweep that it is about (empty where there is one)."""

    sweep: str
    check: Check


@dataclass(frozen=True)
class Document:
    """A whole report; the first `lead` paragraphs of the summary are the answer."""

    title: str
    subtitle: str
    alerts: list[Alert]
    summary: list[str]
    lead: int
    sections: list[Section]


def build(findings: Findings, title: str) -> Document:
    """Words, tables and plots of a report; call it within `report_plots.style`."""
    palette = Palette([run.P for found in findings.sweeps for run in found.sweep.runs])
    if len(findings.sweeps) == 1:
        (only,) = findings.sweeps
        summary, lead = _summary(only), 2
        sections = _sweep_sections(only, palette, prefix="", level=2)
    else:
        summary, lead = _summary_of_several(findings), 0
        sections = [_compared(findings, palette)]
        for number, found in enumerate(findings.sweeps, 1):
            sections.append(Section(f"sweep{number}", f"Sweep {found.sweep.name}", 2, _summary(found)))
            sections += _sweep_sections(found, palette, f"sweep{number}-", level=3)
    return Document(title, _subtitle(findings), _alerts(findings), summary, lead, [*sections, _method()])


def _alerts(findings: Findings) -> list[Alert]:
    several = len(findings.sweeps) > 1
    return [
        Alert(found.sweep.name if several else "", check)
        for status in ("failed", "unknown")
        for found in findings.sweeps
        for check in found.checks
        if check.status == status
    ]


# --- words ---


def _subtitle(findings: Findings) -> str:
    runs = [run for found in findings.sweeps for run in found.sweep.runs]
    models = dict.fromkeys(_short_model(run) for run in runs)
    streams = sorted({run.P for run in runs})
    parts = [", ".join(models), f"P = {_and(streams)}", _count(len(runs), "run")]
    return " · ".join(part for part in parts if part)


def _summary(found: SweepFindings) -> list[str]:
    if not found.streams:
        return [_left_out_words(found) or "No run is finished: there is nothing to compare yet."]
    texts = [
        _what_ran(found),
        _what_differs(found),
        _left_out_words(found),
        _against_backbone(found),
        _what_it_costs(found),
    ]
    texts += [_what_it_is_worth(found), _how_sure(found)]
    return [text for text in texts if text]


def _summary_of_several(findings: Findings) -> list[str]:
    texts = [
        " ".join(filter(None, (f"{found.sweep.name}:", _what_ran(found), _what_differs(found), _left_out_words(found))))
        if found.streams
        else f"{found.sweep.name}: {_left_out_words(found) or 'no run is finished.'}"
        for found in findings.sweeps
    ]
    last = {difference.compared.rpartition(", ")[0]: difference for difference in findings.between}
    texts += [" ".join(map(_difference_sentence, last.values()))] if last else []
    texts.append(_joint_words(findings))
    doubts = dict.fromkeys(_how_sure(found) for found in findings.sweeps if found.streams)
    return [*texts, *(doubts if len(doubts) == 1 else [])]


def _joint_words(findings: Findings) -> str:
    joint = findings.joint
    if joint is None:
        return f"No joint law L(N, P) is fitted: {findings.joint_refused}."
    fitted, ends = joint.fits[0], joint.uncertainties[0].intervals["k"]
    P = int(joint.table.P.max())
    low, high = (1 + k * math.log(P) for k in ends)
    return (
        f"Over {joint.table.sizes} model sizes the joint law L(N, P) gives k = {fitted.stream:.3f} ({PERCENT} interval "
        f"{ends[0]:.3f} to {ends[1]:.3f}), so that P = {P} streams are worth {worth(fitted.parameter_factor(P))} the "
        f"parameters ({_worths((low, high))}); the paper's fits say {_paper_worth(P)}."
    )


def _paper_worth(P: int) -> str:
    return _and([f"{worth(1 + law.k * math.log(P))} on {corpus}" for corpus, law in published.LAWS.items()])


def _what_ran(found: SweepFindings) -> str:
    runs = found.compared.finished
    tokens = sorted({run.outcome.tokens for run in runs})
    budget = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    modes = sorted({run.outcome.mode for run in runs})
    trained = {"peft": "prefixes and aggregator train, the backbone is frozen", "full": "every parameter trains"}
    how = _and([trained[mode] for mode in modes])
    models = _and(dict.fromkeys(map(_short_model, runs)))
    each = " each" if len(runs) > 1 else ""
    text = f"{models} trained with P = {_and(found.compared.streams)} on {budget} tokens{each}; {how}."
    text += _measured_again(runs)
    open_runs = len(found.sweep.unfinished) + len(found.sweep.broken)
    if open_runs:
        are = "run is" if open_runs == 1 else "runs are"
        why = " or cannot be read" if found.sweep.broken else ""
        text += f" {open_runs} more {are} not finished{why} and left out."
    return text


def _measured_again(runs: Sequence[Run]) -> str:
    """On what final losses were measured, where that happened after training: on the same documents for all runs."""
    again = {run.name: run.revalidation for run in runs if run.revalidation is not None}
    if not again:
        return ""
    some = "" if len(again) == len(runs) else f" of {_and(again)}"
    tokens, documents = next((r.validation_predicted_tokens, r.validation_documents) for r in again.values())
    return f" Losses{some} were measured again after training, on {tokens:,} tokens of {documents:,} documents."


def _left_out_words(found: SweepFindings) -> str:
    if not found.left_out:
        return ""
    reasons = "; ".join(f"{run.name} ({reason})" for run, reason in found.left_out.items())
    return f"Left out of every comparison and fit: {reasons}."


def _what_differs(found: SweepFindings) -> str:
    if len(found.streams) == 1 and not found.differences:
        only = found.streams[0]
        return f"It ends at a validation loss of {loss(only.loss)} nats per token. With one P there is no comparison."
    return " ".join(map(_difference_sentence, found.differences))


def _difference_sentence(difference: Difference) -> str:
    names = f"{difference.compared} and {difference.reference}"
    if difference.refused is not None:
        return f"{names} are not compared: {difference.refused}."
    if difference.value is None or difference.documents is None:
        return f"Between {names} no difference is shown: there are too few documents for an interval."
    over = f"{PERCENT} interval over documents {interval(difference.documents)}"
    if difference.seeds is not None:
        over += f", over {difference.seed_count} seeds {interval(difference.seeds)}"
    if not difference.shown:
        return f"Between {names} no difference is shown: {signed(difference.value)} nats per token ({over})."
    side = "below" if difference.value < 0 else "above"
    size = loss(abs(difference.value))
    return f"{difference.compared} ends {size} nats per token {side} {difference.reference} ({over})."


def _against_backbone(found: SweepFindings) -> str:
    backbones = {run.outcome.backbone_validation_loss for run in found.compared.finished}
    gains = [
        f"{signed(gain.value)} at P = {summary.P}{'' if gain.shown else ' (no difference shown)'}"
        for summary in found.streams
        if (gain := summary.gain).value is not None
    ]
    low, high = loss(min(backbones)), loss(max(backbones))
    alone = low if low == high else f"{low} to {high}"
    return f"Against the frozen backbone alone ({alone}) the change is {_and(gains)}."


def _what_it_costs(found: SweepFindings) -> str:
    if len(found.prices) < 2:
        return ""
    first, last = found.prices[0], found.prices[-1]
    text = (
        f"In training, P = {last.P} took {ratio(first.tokens_per_second / last.tokens_per_second)} the time per token "
        f"and {ratio(last.peak_memory_bytes / first.peak_memory_bytes)} the peak memory of P = {first.P}"
    )
    if first.flops_per_token is not None and last.flops_per_token is not None:
        text += f"; the cost model predicts {ratio(last.flops_per_token / first.flops_per_token)} the compute"
    return text + "."


def _what_it_is_worth(found: SweepFindings) -> str:
    law = found.law
    if law is None:
        return f"No law L(P) is fitted: {found.unfitted}." if len(found.streams) > 1 else ""
    P = found.compared.streams[-1]
    if P not in found.shown:
        return (
            f"What P = {P} streams are worth in parameters is not stated: no difference in loss is shown between "
            f"P = {P} and P = {found.compared.streams[0]}."
        )
    text = f"By the fitted law, P = {P} streams are worth {worth(law.worth(P))} the parameters here"
    if law.k_widest is not None:
        text += f" ({PERCENT} interval over {law.k_widest[1]} {_worths(law.worth_interval(P))}, with E and α fixed)"
    if found.parameters is not None:
        text += f", that is {_parameters(law.worth(P) * found.parameters)} instead of {_parameters(found.parameters)}"
    text += "".join(f"; with E and α of {other.corpus}, {worth(other.worth(P))}" for other in found.laws[1:])
    text += f"; the paper's fits say {_paper_worth(P)}"
    if all(run.outcome.mode == "peft" for run in found.compared.finished):
        text += ", for models that were pretrained whole, which this is not"
    return text + "."


def _how_sure(found: SweepFindings) -> str:
    seeds = {len({run.seed for run in summary.runs}) for summary in found.streams}
    if seeds == {1}:
        return (
            "There is one seed, so seed noise is unmeasured and differences between P have no error bars from seeds: "
            "the intervals say how far other validation documents could move the difference between these very runs, "
            "not how another training run would end."
        )
    single = [summary.P for summary in found.streams if len(summary.runs) == 1]
    if single:
        return (
            f"At P = {_and(single)} there is one seed, so seed noise is unmeasured there, and differences from it have "
            "no error bars from seeds."
        )
    return "A difference counts as shown when neither the interval over documents nor the one over seeds covers 0."


# --- sections ---


def _compared(findings: Findings, palette: Palette) -> Section:
    drawn = [found for found in findings.sweeps if found.streams]
    paragraphs = [
        "Sweeps may differ in anything. A difference between them is measured on the same validation "
        "documents, but what caused it is for the configuration below to say."
    ]
    tables, plots = [], []
    if drawn:
        tables.append(_sweep_table(drawn))
        alt = "Final validation loss over streams: " + "; ".join(
            f"{found.sweep.name} {_losses_in_words(found)}" for found in drawn
        )
        plots.append(Plot("sweeps", alt, "Final validation loss of each sweep.", report_plots.sweeps(findings)))
    if findings.between:
        tables.append(_difference_table("Later sweeps minus the first, at equal P", findings.between))
    if findings.joint is not None:
        tables.append(_joint_table(findings.joint))
        alt = "Contours of the fitted loss over parameters and streams, and both laws over streams"
        figure = law_plots.plot_laws([findings.joint])
        plots.append(Plot("joint_law", alt, "The joint law L(N, P).", figure, wide=True))
    tables += _sweep_configurations(findings)
    return Section("compared", "Sweeps compared", 2, paragraphs, tables, plots)


def _sweep_table(sweeps: Sequence[SweepFindings]) -> Table:
    streams = sorted({P for found in sweeps for P in found.compared.streams})
    rows: list[list[str | Cell]] = []
    for found in sweeps:
        losses = {summary.P: loss(summary.loss) for summary in found.streams}
        models = _and(dict.fromkeys(map(_short_model, found.sweep.runs)))
        size = NONE if found.parameters is None else _parameters(found.parameters)
        rows.append([found.sweep.name, models, size, *(losses.get(P, NONE) for P in streams)])
    header = ["sweep", "model", "parameters", *(f"P = {P}" for P in streams)]
    return Table("Final validation loss (parameters without embeddings)", header, rows, (0, 1))


def _joint_table(joint: LawReport) -> Table:
    header, columns = ["constant"], []
    for fitted, doubt, aic in zip(joint.fits, joint.uncertainties, joint.aic, strict=True):
        header.append(fitted.law.name)
        values = [
            f"{value:.4g} ({doubt.intervals[name][0]:.4g} to {doubt.intervals[name][1]:.4g})"
            for name, value in fitted.values().items()
        ]
        ends = [f"{fitted.r_squared:.5f}", f"{aic:.1f}".replace("-", "−"), f"{doubt.left_out_rms:.2%}"]
        columns.append([fitted.law.formula, *values, *ends])
    names = ["L(N, P)", "E", "A", "k or rho", "alpha", "R²", "AIC", "error on a left-out run, rms"]
    rows: list[list[str | Cell]] = [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    return Table(f"The joint law and its rival, with {PERCENT} intervals of residuals", header, rows, (0, 1, 2))


def _sweep_configurations(findings: Findings) -> list[Table]:
    """The keys whose values are not the same in all sweeps, a column for each sweep."""
    rows: list[list[str | Cell]] = []
    for name in _KEYS:
        columns = [_and(dict.fromkeys(map(partial(_setting, name), found.sweep.runs))) for found in findings.sweeps]
        if len(set(columns)) > 1:
            rows.append([name, *columns])
    header = ["key", *(found.sweep.name for found in findings.sweeps)]
    numbers = tuple(range(len(header)))
    return (
        [Table("Configuration that differs between sweeps", header, rows, numbers, prose=numbers[1:])] if rows else []
    )


def _sweep_sections(found: SweepFindings, palette: Palette, prefix: str, level: int) -> list[Section]:
    makers: list[tuple[str, str, Callable[[SweepFindings, Palette, str], _Body]]] = [
        ("losses", "Losses", _losses),
        ("worth", "What streams are worth", _worth_section),
        ("streams", "How the streams are used", _streams),
        ("price", "The price", _price),
        ("validity", "Validity", _validity),
        ("configuration", "Configuration", _configuration),
        ("provenance", "Provenance", _provenance),
    ]
    sections = []
    for key, title, make in makers:
        body = make(found, palette, prefix)
        if body.paragraphs or body.tables or body.plots:
            sections.append(Section(prefix + key, title, level, body.paragraphs, body.tables, body.plots))
    return sections


@dataclass(frozen=True)
class _Body:
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def _losses(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    tables, plots = [], []
    if found.streams:
        tables.append(_loss_table(found, palette))
        caption = "Final validation loss over P, on a logarithmic axis."
        if any(difference.documents for difference in found.differences):
            caption += (
                f" Bars: {PERCENT} interval, over documents, of the difference from P = {found.compared.streams[0]}"
                " (drawn around that loss)."
            )
        if found.law is not None:
            caption += " Grey: the fitted law; its band is the interval of its fall from P = 1."
        alt = f"Final validation loss over streams: {_losses_in_words(found)}"
        plots.append(Plot(f"{prefix}loss_over_P", alt, caption, report_plots.loss_over_streams(found, palette)))
    if any(run.series("validation_loss")[0] for run in found.sweep.runs):
        alt = "Validation loss over tokens: " + "; ".join(map(_curve_in_words, found.sweep.runs))
        caption = "Validation loss during training, one line per run"
        caption += "; dotted: not finished." if found.sweep.unfinished else "."
        if any(run.revalidation for run in found.sweep.finished):
            caption += " Final losses were measured again afterwards: they need not be where the lines end."
        plots.append(Plot(f"{prefix}loss_over_tokens", alt, caption, report_plots.loss_over_tokens(found, palette)))
    if any(difference.value is not None for difference in found.differences):
        alt = "Differences in loss: " + " ".join(map(_difference_sentence, found.differences))
        caption = f"Thick, above: {PERCENT} interval over documents."
        if any(difference.seeds for difference in found.differences):
            caption += f" Dashed, below: {PERCENT} t interval over seeds."
        plots.append(Plot(f"{prefix}differences", alt, caption, report_plots.differences(found, palette)))
    if found.differences:
        tables.append(_difference_table("Differences in final validation loss", found.differences + found.steps))
    return _Body([], tables, plots)


def _loss_table(found: SweepFindings, palette: Palette) -> Table:
    header = ["streams", "loss, nats", "perplexity", "minus backbone", f"{PERCENT} interval, documents"]
    several = any(summary.seed_spread is not None for summary in found.streams)
    if several:
        header += ["seeds", "spread", f"{PERCENT} interval, seeds"]
    rows: list[list[str | Cell]] = []
    for summary in found.streams:
        row: list[str | Cell] = [
            _stream_cell(summary.P, palette),
            loss(summary.loss),
            f"{summary.perplexity:.3f}",
            NONE if summary.gain.value is None else signed(summary.gain.value),
            interval(summary.gain.documents),
        ]
        if several:
            spread = NONE if summary.seed_spread is None else loss(summary.seed_spread)
            row += [str(len({run.seed for run in summary.runs})), spread, interval(summary.seed_interval, signs=False)]
        rows.append(row)
    return Table("Final validation loss", header, rows)


def _difference_table(caption: str, differences: Sequence[Difference]) -> Table:
    header = ["compared", "with", "difference", f"{PERCENT} interval, documents"]
    several = any(difference.seeds is not None for difference in differences)
    header += [f"{PERCENT} interval, seeds", "verdict"] if several else ["verdict"]
    rows = []
    for item in differences:
        row: list[str | Cell] = [item.compared, item.reference]
        row += [NONE if item.value is None else signed(item.value), interval(item.documents)]
        row += [interval(item.seeds)] if several else []
        row.append(Cell(item.verdict, "shown" if item.shown else "open"))
        rows.append(row)
    return Table(caption, header, rows, (0, 1, len(header) - 1), prose=(len(header) - 1,))


def _worth_section(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    if found.law is None:
        return _Body([f"No law L(P) is fitted: {found.unfitted}."] if found.unfitted else [])
    first = found.law
    paragraphs = [
        "The law L(P) = E + (L(1) − E)·(k ln P + 1)^(−α) says that P streams act like k ln P + 1 times the "
        "parameters. One model size cannot tell E and α, so they are taken from the paper's fits; how much k "
        "depends on which is the difference between the rows below. Fitted: k ln P + 1, with the wider of its "
        "intervals over documents and over residuals. Measured: the law inverted at the loss of that P alone."
    ]
    if found.unfitted:
        paragraphs.append(f"Not fitted {found.unfitted}.")
    ends = first.fit.intervals
    header = ["E and α from", "E", "α", "k", f"{PERCENT} interval, documents"]
    header += [f"{PERCENT} interval, residuals", "k in the paper"] if ends else ["k in the paper"]
    rows: list[list[str | Cell]] = [_law_row(law, bool(ends)) for law in found.laws]
    tables = [Table("The fitted law", header, rows)]
    over = "" if first.k_widest is None else f", {first.k_widest[1]}"
    header = ["streams", "fitted", f"{PERCENT} interval{over}", "measured", f"{PERCENT} interval, documents"]
    header.append("as many parameters as")
    header += [f"paper, {corpus}" for corpus in published.LAWS]
    rows = [
        [
            _stream_cell(P, palette),
            worth(first.worth(P)),
            _worths(first.worth_interval(P)),
            NONE if (measured := first.measured(P)) is None else worth(measured),
            _worths(first.measured_documents(P)),
            _as_many(found, first, P),
            *(worth(1 + math.log(P) * law.k) for law in published.LAWS.values()),
        ]
        for P in found.compared.streams
    ]
    tables.append(Table(f"Worth in parameters (E and α from {first.corpus})", header, rows))
    alt = "Factor on the parameters that streams are worth: " + ", ".join(
        f"{worth(first.worth(P))} fitted at P = {P}" for P in found.compared.streams
    )
    caption = (
        f"Markers: worth measured at each P, with its {PERCENT} interval over documents. Line: the fitted law, with "
        f"the wider {PERCENT} interval of k; dashed where nothing was measured."
    )
    figure = report_plots.worth(first, found.compared.streams, palette)
    return _Body(paragraphs, tables, [Plot(f"{prefix}worth", alt, caption, figure)])


def _as_many(found: SweepFindings, law: StreamLaw, P: int) -> str:
    """Parameters that P streams are worth, where a difference is shown."""
    if found.parameters is None or P not in {found.compared.streams[0], *found.shown}:
        return NONE
    return _parameters(law.worth(P) * found.parameters)


def _law_row(law: StreamLaw, residuals: bool) -> list[str | Cell]:
    row: list[str | Cell] = [law.corpus, f"{law.fit.E:.4f}", f"{law.fit.alpha:.4f}", f"{law.fit.k:.4f}"]
    row.append(_thousandths(law.k_documents))
    if residuals:
        row.append(_thousandths(law.fit.intervals["k"] if law.fit.intervals else None))
    return [*row, f"{published.LAWS[law.corpus].k:.4f}"]


def _streams(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    runs = [run for run in found.sweep.runs if run.streams]
    if not runs:
        return _Body()
    plots = []
    shown: set[int] = set()
    for run in runs:
        last = run.streams[-1]["mean_weight"]
        alt = f"Heat map of the streams' weights in {run.name}; at the end " + ", ".join(
            f"stream {p} has {weight:.3f}" for p, weight in enumerate(last)
        )
        caption = f"{run.name}: mean weight of each stream; on the right the last values."
        # One heat map for each P stands open, those of its other seeds are folded.
        figure = report_plots.weights(run)
        plots.append(Plot(f"{prefix}weights_{run.name}", alt, caption, figure, folded=run.P in shown))
        shown.add(run.P)
    for key, draw, caption in (
        (
            "entropy",
            report_plots.entropy,
            "How evenly a token mixes the streams: 1 is all alike, 0 is all on one stream, as far as label smoothing "
            "allows.",
        ),
        (
            "similarity",
            report_plots.similarity,
            "How alike the streams' final hidden states are; at 1 they would compute the same.",
        ),
    ):
        recorded = {"entropy": "entropy_relative", "similarity": "mean_cosine_similarity"}[key]
        alt = f"{caption} At the end: " + ", ".join(f"{run.streams[-1][recorded]:.3f} in {run.name}" for run in runs)
        plots.append(Plot(f"{prefix}{key}", alt, caption, draw(found, palette)))
    header = ["run", "mean weight", "largest on", "entropy, nats", "of its range", "KL to even", "Gini", "mean cosine"]
    rows: list[list[str | Cell]] = []
    for run in runs:
        last = run.streams[-1]
        reason = collapsed(last, run.config.parscale.attn_smooth)
        rows.append(
            [
                run.name,
                " ".join(f"{weight:.3f}" for weight in last["mean_weight"]),
                " ".join(f"{share:.0%}" for share in last["argmax_share"]),
                *(f"{last[key]:.4f}" for key in ("entropy", "entropy_relative", "kl_uniform", "gini")),
                f"{last['mean_cosine_similarity']:.4f}",
                Cell("collapsed", "failed") if reason else Cell("no", "passed"),
            ]
        )
    return _Body([], [Table("Streams at the last log point", [*header, "collapsed"], rows, (0, 8))], plots)


def _price(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    if not found.prices:
        return _Body()
    first = found.prices[0]
    devices = dict.fromkeys(
        f"{process.device} ({process.device_name})"
        for run in found.compared.finished
        if run.meta is not None
        for process in run.meta.processes
    )
    paragraphs = [
        f"Measured in training on {_and(devices)}, at the median of each run's records of speed; runs that trained at "
        "the same time on one machine slowed each other down. The predicted compute is that of a forward pass by the "
        "formulas of the cost model, to which a backward pass adds nearly the same multiple at every P.",
    ]
    header = [
        "streams",
        "tokens/s",
        "time per token",
        "predicted compute",
        "peak memory",
        "relative",
        "waited for data",
    ]
    rows: list[list[str | Cell]] = [
        [
            _stream_cell(item.P, palette),
            f"{item.tokens_per_second:,.0f}",
            ratio(first.tokens_per_second / item.tokens_per_second),
            NONE
            if item.flops_per_token is None or first.flops_per_token is None
            else ratio(item.flops_per_token / first.flops_per_token),
            memory(item.peak_memory_bytes),
            ratio(item.peak_memory_bytes / first.peak_memory_bytes),
            f"{item.data_wait_fraction:.1%}",
        ]
        for item in found.prices
    ]
    tables = [Table(f"Training, relative to P = {first.P}", header, rows)]
    costs = [(item.P, item.inference) for item in found.prices if item.inference is not None]
    if costs:
        rows = [
            [
                _stream_cell(P, palette),
                memory(cost.memory.total),
                f"{1000 * cost.latency.total:.3g} ms",
                ratio(cost.memory.total / costs[0][1].memory.total),
                ratio(cost.latency.total / costs[0][1].latency.total),
            ]
            for P, cost in costs
        ]
        caption = f"Inference, predicted: 64 tokens after 64, batch 1, bf16, {DEFAULT_ACCELERATOR}"
        tables.append(Table(caption, ["streams", "memory", "latency", "memory, relative", "latency, relative"], rows))
    paragraphs += [f"P = {item.P} has no prediction: {item.unpredicted}." for item in found.prices if item.unpredicted]
    plots = []
    if len(found.prices) > 1:
        alt = f"Training cost relative to P = {first.P}: " + "; ".join(
            f"P = {item.P} {ratio(first.tokens_per_second / item.tokens_per_second)} the time per token, "
            f"{ratio(item.peak_memory_bytes / first.peak_memory_bytes)} the peak memory"
            for item in found.prices[1:]
        )
        caption = "What more streams cost in training, measured and predicted."
        plots.append(Plot(f"{prefix}price", alt, caption, report_plots.price(found.prices, palette)))
    return _Body(paragraphs, tables, plots)


def _validity(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    rows: list[list[str | Cell]] = [
        [Cell(check.status, check.status.replace(" ", "-")), check.title, check.detail] for check in found.checks
    ]
    return _Body(
        [], [Table("What the comparison rests on", ["status", "check", "found"], rows, (0, 1, 2), prose=(1, 2))]
    )


def _configuration(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    return _Body([], _configuration_tables(found.sweep.runs))


def _configuration_tables(runs: Sequence[Run]) -> list[Table]:
    if not runs:
        return []
    value = {name: partial(_setting, name) for name in _KEYS}
    differ = [name for name in _KEYS if len(set(map(value[name], runs))) > 1]
    rows: list[list[str | Cell]] = [[name, grouped(runs, value[name], between="; ")] for name in differ]
    tables = [Table("Keys that differ", ["key", "values"], rows, (0, 1), prose=(1,))] if rows else []
    rows = [[name, value[name](runs[0])] for name in _KEYS if name not in differ]
    return [*tables, Table("Keys that all runs share", ["key", "value"], rows, (0, 1), prose=(1,), folded=True)]


def _setting(name: str, run: Run) -> str:
    value = attrgetter(name)(run.config)
    return "null" if value is None else str(value)


def _provenance(found: SweepFindings, palette: Palette, prefix: str) -> _Body:
    header = ["run", "P", "seed", "status", "tokens", "data hash", "started", "resumed", "commit", "run id"]
    rows: list[list[str | Cell]] = []
    for run in found.sweep.runs:
        status = Cell(run.status, "passed" if run.finished else "failed")
        row: list[str | Cell] = [run.name, str(run.P), str(run.seed), status]
        row += (
            [f"{run.provenance[-1]['tokens']:,}", run.provenance[-1]["sha256"][:16]] if run.provenance else [NONE] * 2
        )
        if run.meta is None:
            row += [NONE] * 4
        else:
            process = run.meta.processes[0]
            commit = NONE if process.git is None else process.git.commit[:10] + (" *" if process.git.dirty else "")
            row += [process.started, _count(len(run.meta.processes) - 1, "time"), commit, run.meta.run_id]
        rows.append(row)
    for broken in found.sweep.broken:
        rows.append([broken.name, NONE, NONE, Cell(broken.problem, "failed"), *[NONE] * 6])
    words = (0, 3, 5, 6, 7, 8, 9)
    tables = [Table("Runs (* files were changed since the commit)", header, rows, words)]
    known = [run for run in found.sweep.runs if run.meta is not None]
    if known:
        facts: dict[str, Callable[[Run], str]] = {
            "data set": lambda run: attrgetter("meta.dataset")(run),
            "its revision": lambda run: attrgetter("meta.dataset_revision")(run),
            "validation hash, in training": lambda run: attrgetter("meta.validation_sha256")(run),
            "validation hash, of the final losses": _last_validation,
            "model": lambda run: attrgetter("meta.model")(run),
            "model revision": lambda run: attrgetter("meta.model_revision")(run),
            "tokenizer hash": lambda run: attrgetter("meta.tokenizer_sha256")(run),
            "training data hash": lambda run: run.provenance[-1]["sha256"] if run.provenance else NONE,
        }
        rows = [[name, _one_or_grouped(known, value)] for name, value in facts.items()]
        tables.append(Table("Data and model", ["fact", "value"], rows, (0, 1), prose=(1,)))
    return _Body([], tables + _shard_tables(found))


def _last_validation(run: Run) -> str:
    return run.outcome.validation_sha256 if run.finished else NONE


def _one_or_grouped(runs: Sequence[Run], value: Callable[[Run], str]) -> str:
    values = set(map(value, runs))
    return values.pop() if len(values) == 1 else grouped(runs, value)


def _shard_tables(found: SweepFindings) -> list[Table]:
    """Which bytes of which shards were read: one table for all runs that read the same."""
    readers: dict[str, list[Run]] = {}
    for run in found.sweep.runs:
        if run.provenance:
            readers.setdefault(run.provenance[-1]["sha256"], []).append(run)
    header = ["shard", "first byte", "to byte", "documents", "tokens"]
    return [
        Table(
            f"Shards read by {_and(run.name for run in runs)}",
            header,
            [
                [shard["shard"], *(f"{shard[key]:,}" for key in ("byte_start", "byte_end", "documents", "tokens"))]
                for shard in runs[0].provenance[-1]["shards"]
            ],
            folded=True,
        )
        for runs in readers.values()
    ]


def _method() -> Section:
    text = [
        "Losses are natural-log cross entropies per predicted token over the same fixed documents, measured on the "
        "model as it is saved.",
        f"Intervals over documents are percentile intervals of {RESAMPLES:,} bootstrap samples of whole documents. "
        "Every run sees the same sample, so the noise that documents bring to all runs alike cancels in differences. "
        "They are taken one by one: among several, one may miss by chance.",
        "Intervals over seeds are Student's t intervals of differences paired by seed. They need several seeds; "
        "with one, nothing in this report says how much a second training run would differ.",
        "The interval of k over documents follows the resampled losses through the fit to first order; that over "
        "residuals resamples what the fit leaves. Both hold E and α fixed.",
    ]
    return Section("method", "How these numbers are made", 2, text)


# --- forms of numbers ---


def loss(value: float) -> str:
    """Nats, to four digits."""
    return f"{value:.4f}"


def signed(value: float) -> str:
    """Nats with a sign."""
    return f"{value:+.4f}".replace("-", "−")


def interval(ends: Interval | None, signs: bool = True) -> str:
    """Both ends of an interval in nats."""
    if ends is None:
        return NONE
    form = signed if signs else loss
    return f"{form(ends[0])} to {form(ends[1])}"


def ratio(value: float) -> str:
    """A factor."""
    return f"{value:.2f}×"


def worth(value: float) -> str:
    """A factor on parameters, which may be close to 1."""
    return f"{value:.3f}×"


def memory(size: float) -> str:
    """Bytes, in GiB from one on."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _worths(ends: Interval | None) -> str:
    return NONE if ends is None else f"{worth(ends[0])} to {worth(ends[1])}"


def _thousandths(ends: Interval | None) -> str:
    return NONE if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}".replace("-", "−")


def _parameters(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:.0f}"


def _stream_cell(P: int, palette: Palette) -> Cell:
    return Cell(f"P = {P}", f"stream c{palette.index(P)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _and(items: Iterable[Any]) -> str:
    """a, b and c."""
    texts = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def _short_model(run: Run) -> str:
    """The model's name without its owner or folder."""
    return PurePath(run.config.model.name).name or run.config.model.name


def _losses_in_words(found: SweepFindings) -> str:
    return ", ".join(f"{loss(summary.loss)} at P = {summary.P}" for summary in found.streams)


def _curve_in_words(run: Run) -> str:
    tokens, losses = run.series("validation_loss")
    if not tokens:
        return f"{run.name} has no validation yet"
    return f"{run.name} from {loss(losses[0])} to {loss(losses[-1])} at {tokens[-1]:,} tokens"

"""What is measured, how, and what the numbers do not say; the tasks come from the registry."""

from __future__ import annotations

from functools import cache
from urllib.parse import quote

import gradio as gr
from markupsafe import Markup

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.part import Context, Part
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.registry import TaskSpec, registry
from parcontrol.leaderboard.submission import PERIOD, SUBMISSIONS
from parcontrol.leaderboard.table import averaged_columns

_KINDS = {
    "generate": "writes text",
    "choice": "rates given answers",
    "rolling": "rates a text",
}

HARNESS_BIBTEX = """@software{lm-evaluation-harness,
  title   = {The Language Model Evaluation Harness},
  author  = {Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and others},
  year    = {2023},
  doi     = {10.5281/zenodo.10256836}
}"""
LEADERBOARD_BIBTEX = """@misc{hallucinations-leaderboard,
  title         = {The Hallucinations Leaderboard -- An Open Effort to Measure Hallucinations
                   in Large Language Models},
  author        = {Hong, Giwon and Gema, Aryo Pradipta and Saxena, Rohit and Du, Xiaotang and
                   Nie, Ping and Zhao, Yu and Perez-Beltrachini, Laura and Ryabinin, Max and
                   He, Xuanli and Fourrier, Cl\\'ementine and Minervini, Pasquale},
  year          = {2024},
  eprint        = {2404.05904},
  archivePrefix = {arXiv}
}"""
PARSCALE_BIBTEX = """@misc{parscale,
  title         = {Parallel Scaling Law for Language Models},
  author        = {Chen, Mouxiang and Hui, Binyuan and Cui, Zeyu and Yang, Jiaxi and
                   Liu, Dayiheng and Sun, Jianling and Lin, Junyang and Liu, Zhongxin},
  year          = {2025},
  eprint        = {2505.10475},
  archivePrefix = {arXiv}
}"""
OWN_BIBTEX = """@software{parcontrol,
  title   = {ParControl: parallel-scaled language models, trained, measured and compared},
  year    = {2026},
  version = {VERSION}
}"""


def build(context: Context) -> Part:
    """Makes the part; it is the same for every board."""
    page = gr.HTML(about_html(), elem_id="about", apply_default_css=False)

    def show(board: Board, view: View) -> list[str]:
        return [about_html()]

    return Part([page], show, refresh=lambda board, view: [gr.skip()])


@cache
def about_html() -> str:
    """Returns the page about the leaderboard."""
    from parcontrol import __version__

    groups = averaged_columns()
    return render(
        "about",
        tasks=[_task(spec) for spec in registry()],
        averaged={group: len(labels) for group, labels in groups.items()},
        submissions=SUBMISSIONS,
        days=PERIOD.days,
        works=[
            ("This software", OWN_BIBTEX.replace("VERSION", __version__)),
            ("The leaderboard that this one follows", LEADERBOARD_BIBTEX),
            ("The harness that asks the models", HARNESS_BIBTEX),
            ("Parallel scaling", PARSCALE_BIBTEX),
        ],
    )


def _task(spec: TaskSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "native": spec.native,
        "group": spec.group,
        "dataset": spec.dataset,
        "link": dataset_link(spec.dataset),
        "part": " · ".join(part for part in (spec.config, spec.split) if part),
        "kind": _KINDS[spec.kind],
        "shots": spec.num_fewshot,
        "columns": spec.columns,
        "version": spec.version,
    }


def dataset_link(repository: str) -> Markup:
    """Returns the address of a dataset of the registry on the Hub."""
    return Markup("https://huggingface.co/datasets/{}").format(quote(repository))

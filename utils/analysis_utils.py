"""Reading sweeps back and reporting on them: `parcontrol.analysis`."""

from parcontrol.analysis.report import generate_report
from parcontrol.analysis.results import load_experiment_results

__all__ = ["generate_report", "load_experiment_results"]

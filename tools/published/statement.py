"""A result as a paper's appendix should state it: protocol, images, figures in every counting, what it ran on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.published.comparison import Comparison
from utils.metrics import CONVENTIONS, averaged_classes, class_groups, mean_iou

COUNTINGS = {
    "mib": "background counts nowhere",
    "plop": "background counts in base and all",
    "mbs": "background counts in all only, classes of IoU 0 do not",
}
_GROUPS = ("base", "incremental", "all")


def format_statement(comparisons: Sequence[Comparison], limit: int = 0) -> str:
    """A block of Markdown a comparison."""
    return "\n".join(_state(comparison) for comparison in comparisons)


def _state(comparison: Comparison) -> str:
    run = comparison.runs[0]
    results, fields = run.results, run.fields
    items = {
        "Method": _method(fields),
        "Task": f"{comparison.dataset} {comparison.task}, {comparison.setting}; {_steps(results)}",
        "Network": _network(fields),
        "Training": _training(fields),
        "Memory": f"{fields.get('memory.size', 0)} images of earlier steps",
        "Weights of a step": f"checkpoint: {fields.get('checkpoint')}",
        "Evaluation": _evaluation(fields, results),
        "Images": _images(results),
        "Ran on": _machine(results),
    }
    lines = [f"### {comparison.title}", ""]
    lines += [f"- {name}: {text}." for name, text in items.items()]
    lines += ["", "mIoU after the last step in percent, by who counts background how:", ""]
    lines += ["| | base | incremental | all |", "|---|--:|--:|--:|"]
    lines += [f"| {COUNTINGS[name]} (`{name}`) | {_figures(comparison, name)} |" for name in CONVENTIONS]
    return "\n".join(lines) + "\n"


def _method(fields: dict[str, Any]) -> str:
    name = fields["method"]
    options = {k.removeprefix("method."): v for k, v in fields.items() if k.startswith("method.")}
    return f"{name} ({_join(options)})" if options else str(name)


def _steps(results: Any) -> str:
    sizes = [len(step["new_classes"]) - (step["step"] == 0) for step in results["steps"]]
    return (
        f"{len(sizes)} steps of {', '.join(map(str, sizes))} classes: {', '.join(results['class_names'][1:])}"
    )


def _network(fields: dict[str, Any]) -> str:
    options = {
        k.removeprefix("model."): v for k, v in fields.items() if k.startswith("model.") and v is not None
    }
    return _join(options)


def _training(fields: dict[str, Any]) -> str:
    options = {
        k.removeprefix("train."): v for k, v in fields.items() if k.startswith("train.") and v is not None
    }
    return _join(options)


def _evaluation(fields: dict[str, Any], results: Any) -> str:
    options = {k.removeprefix("evaluate."): v for k, v in fields.items() if k.startswith("evaluate.")}
    return f"{results['steps'][-1]['num_val_images']} validation images ({_join(options)})"


def _images(results: Any) -> str:
    counts = ", ".join(str(step["num_train_images"]) for step in results["steps"])
    digests = [step.get("train_images_sha256") for step in results["steps"]]
    told = f"{counts} for training"
    if all(digests):
        told += f"; SHA-256 of each step's list {', '.join(digest[:12] for digest in digests)}"
    if results.get("val_images_sha256"):
        told += f", of the validation images {results['val_images_sha256'][:12]}"
    return told


def _machine(results: Any) -> str:
    versions = results.get("versions") or {}
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "torch", "timm") if versions.get(name)
    )
    return f"{results.get('device')}, {packages}, commit {results.get('commit') or 'unknown'}"


def _figures(comparison: Comparison, convention: str) -> str:
    num_base, cells = comparison.num_base, []
    for group in _GROUPS:
        values = []
        for ious in comparison.ious:
            iou = ious[convention]
            ids = class_groups(convention, num_base, num_base, len(iou))[group]
            values.append(mean_iou(iou, averaged_classes(convention, group, iou, ids)))
        known = [100 * value for value in values if value is not None]
        if len(known) < len(values):
            cells.append("–")
            continue
        spread = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
        cells.append(f"{np.mean(known):.1f}{spread}")
    return " | ".join(cells)


def _join(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())

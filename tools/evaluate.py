"""Evaluate a checkpoint on the validation split of its data, or of others with its classes.

Without options the figures are those of results.json for its step. Exit code 2: an error to mend.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DATASETS
from datasets.tasks import Step, Task
from models import ModelInfo, SegmentationModel, load_model
from trainer.config import Config, make_config
from trainer.labelled import describe_unlabelled
from trainer.plan import open_evaluation
from trainer.precision import check_same_precision, settle_precision
from trainer.validation import validate
from utils.arguments import add_checkpoint, add_device, add_overwrite, add_set, fail, new_parser, to_path
from utils.distributed import Worker, process_group
from utils.errors import RunError
from utils.files import check_output, write_atomic
from utils.report.results import SCORES, make_step_entry
from utils.report.tables import printable

EXAMPLES = """
python -m tools.evaluate runs/demo/checkpoints/step_2.pth --json figures.json
python -m tools.evaluate runs/demo/checkpoints/step_2.pth --set evaluate.mode=sliding
python -m tools.evaluate runs/voc/checkpoints/step_5.pth --data OTHER_ROOT
torchrun --nproc_per_node=2 -m tools.evaluate runs/voc/checkpoints/step_5.pth
"""
UNKNOWN = ("forgetting", "num_train_images", "train_images_sha256", "seconds")
"""What the results of a run say of a step that its checkpoint alone does not."""


def evaluate_model(
    model: SegmentationModel, info: ModelInfo, config: Config, worker: Worker
) -> dict[str, Any]:
    """Return the entry that results.json has for the step, without what the checkpoint alone does not know.

    Raises ValueError or OSError naming what is wrong with config or data.
    """
    evaluation = open_evaluation(config, worker)
    step = step_of(info, evaluation.task)
    evaluation = evaluation.so_far(step)
    validation = validate(evaluation, step, model, worker)
    if validation.unreadable.problems and worker.is_main:
        print(validation.unreadable.describe())
    if worker.is_main:
        for line in describe_unlabelled(config, evaluation.task, evaluation.without_label):
            print(line)
    entry = make_step_entry(
        step_index=step.index,
        new_class_names=evaluation.task.new_class_names(step),
        iou_history=[validation.iou],
        iou_of=validation.iou_of,
        class_names_seen=info.class_names,
        num_old=step.num_old,
        num_new=step.num_new,
        num_base=evaluation.task.steps[0].num_new,
        num_train_images=0,
        num_val_images=len(evaluation.image_ids) - len(validation.unreadable.problems),
        seconds=0.0,
    )
    return {name: value for name, value in entry.items() if name not in UNKNOWN}


def step_of(info: ModelInfo, task: Task) -> Step:
    """Return the step of a task that a checkpoint has learned; raises ValueError where its classes are others."""
    step = task.steps[info.step] if info.step < len(task.steps) else None
    ours = task.class_names[: step.num_classes] if step else task.class_names
    if step is None or ours != info.class_names:
        raise ValueError(
            f"task: the checkpoint has learned {', '.join(info.class_names)} by step {info.step}, but it is "
            f"{', '.join(ours)} in {len(task.steps)} steps; names and order must agree: leave task and class_order as "
            "they are in the checkpoint, and take data that have its classes"
        )
    return step


def format_entry(entry: Mapping[str, Any]) -> str:
    """IoU of every class and the groups' means, in percent."""
    scores = {name: entry[name] for name in SCORES if name in entry}
    rows = {printable(name): value for name, value in {**entry["per_class_iou"], **scores}.items()}
    width = max(map(len, rows))
    return "\n".join(
        f"{name:<{width}}  " + ("   –" if value is None else f"{100 * value:5.1f}")
        for name, value in rows.items()
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.evaluate", __doc__, EXAMPLES)
    what = parser.add_argument_group("input and output")
    add_checkpoint(what)
    what.add_argument(
        "--data", type=to_path, metavar="ROOT", help="where the data lie, instead of its data.root"
    )
    add_set(what, "the checkpoint's config")
    what.add_argument("--json", type=to_path, metavar="FILE", help="write the figures there, in full")
    add_overwrite(what)
    add_device(parser.add_argument_group("how it runs"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.json is not None:
            check_output("--json", args.json, [args.checkpoint], args.overwrite)
        model, info = load_model(args.checkpoint)
        if args.data is not None:
            info.config.setdefault("data", {})["root"] = str(args.data)
            info.config["data"].pop("val_root_old", None)
        config = make_config(info.config, args.checkpoint, args.overrides)
        if args.data is not None and not DATASETS[config.data.name].lies_in_files:
            raise ValueError(
                f"--data {args.data}: data.name={config.data.name} lies in no files; leave --data out"
            )
        with process_group(args.device, config.distributed.timeout) as worker:
            config = settle_precision(config, worker.device)
            check_same_precision(config, worker)
            entry = evaluate_model(model.to(worker.device), info, config, worker)
            if worker.is_main:
                print(format_entry(entry))
                if args.json is not None:
                    write_atomic(args.json, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
    except (RunError, ValueError, OSError, ImportError) as error:
        fail(parser, error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Mean ± standard deviation over the seeds of many runs, as a table or a figure.

Runs are folders with config.yaml and the lines of tables that `tools.record` has written (.jsonl); others
(runs/class_index) and files are passed over. A run that has not finished its task takes no part in a mean and is named
below the table, and so is a row whose runs differ in more than the seed. The deviation is that of a sample (n − 1). The
best mean of a column is bold, among rows that differ in `method` or `variant` only; `joint`, the upper bound, does not
compete.
"""

import argparse
import sys
from collections.abc import Sequence

from tools.summary.groups import Row, mixed_fields, select, summarize
from tools.summary.images import describe_image_differences
from tools.summary.records import read_runs
from tools.summary.runs import Run
from tools.summary.table import FORMATS
from utils.arguments import add_overwrite, fail, new_parser, to_path
from utils.files import check_output, write_atomic

EXAMPLES = """
python -m tools.summarize runs/*
python -m tools.summarize runs/* --group-by method,train.lr_incremental --format latex --plot comparison.png
python -m tools.summarize runs/voc_* --published --method PLOP
python -m tools.summarize docs/results/voc_animals.jsonl runs/* --where "setting=overlap,log=animals_*|mine_*"
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.summarize", __doc__, EXAMPLES)
    what = parser.add_argument_group("input")
    what.add_argument(
        "runs", type=to_path, nargs="+", metavar="RUN", help="folders of runs, and tables of runs (.jsonl)"
    )
    what.add_argument(
        "--where",
        metavar="FIELD=PATTERN,...",
        help="take only runs whose fields match; patterns are a shell's, a|b is a or b, and rows stand in their order; "
        "log is the run's name",
    )
    what.add_argument(
        "--group-by",
        default="method,task",
        metavar="FIELD,FIELD",
        help="fields of results.json or config.yaml whose runs belong together; variant: the row of an ablation, else "
        "the method; default: method,task",
    )
    what.add_argument(
        "--published",
        action="store_true",
        help="add the published rows of the runs' data sets, tasks and settings (docs/published.tsv), marked; the "
        "figures show runs only",
    )
    what.add_argument(
        "--method", metavar="NAME", help="of published rows take this method's only, such as PLOP"
    )
    how = parser.add_argument_group("output")
    how.add_argument("--format", choices=FORMATS, default="md", help="of the table; default: md")
    how.add_argument("--plot", type=to_path, metavar="FILE", help="write a figure there (PNG)")
    how.add_argument(
        "--plot-classes", type=to_path, metavar="FILE", help="write the IoU of one run's classes there (PNG)"
    )
    add_overwrite(how)
    return parser


def write_figures(args: argparse.Namespace, rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """Write the figures that are asked for; matplotlib, which they need, takes longer to load than a table to print."""
    if args.plot is not None:
        from tools.summary.figure import draw

        write_atomic(args.plot, draw(rows))
    if args.plot_classes is not None:
        from utils.report.plots import draw_per_class_iou

        if len(runs) != 1 or not runs[0].is_complete:
            raise ValueError(
                f"--plot-classes {args.plot_classes}: shows one finished run, found {len(runs)} runs; choose one, such "
                "as with --where log=NAME"
            )
        write_atomic(args.plot_classes, draw_per_class_iou(runs[0].results))


def add_published(
    args: argparse.Namespace, rows: Sequence[Row], group_by: Sequence[str]
) -> tuple[list[Row], list[str]]:
    """Return the published rows that are asked for, and the lines to print about them."""
    if args.method is not None and not args.published:
        raise ValueError(f"--method {args.method}: chooses among published rows; add --published")
    if not args.published:
        return [], []
    from tools.published.registry import read_rows
    from tools.published.table_rows import LEGEND, published_rows

    found, uncounted = published_rows(rows, group_by, read_rows(), args.method)
    told = ["", "Published, in no column:", "", *uncounted] if uncounted else []
    return found, ["", LEGEND if found else "No published row stands in the table.", *told]


def print_remarks(rows: Sequence[Row], runs: Sequence[Run], told: Sequence[str], on_stdout: bool) -> None:
    """Print what is told of published rows; name rows whose runs differ in more than the seed, runs that have not seen
    the same images, and runs that have not finished.
    """
    # Beside a format for machines they must not stand in it.
    out = sys.stdout if on_stdout else sys.stderr
    for row in rows:
        if mixed := mixed_fields(row.runs):
            print(
                f"\n{' · '.join(row.key)} mixes runs that differ in {', '.join(mixed)}; see --group-by",
                file=out,
            )
    for line in told:
        print(line, file=out)
    for line in describe_image_differences([run for run in runs if run.is_complete]):
        print(f"\n{line}", file=out)
    incomplete = [run for run in runs if not run.is_complete]
    if incomplete:
        print("\nIncomplete, in no mean:\n", file=out)
    for run in incomplete:
        print(f"- {run.source} ({len(run.results['steps'])} steps finished)", file=out)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    group_by = [field.strip() for field in args.group_by.split(",")]
    try:
        inputs = [path for run in args.runs for path in (run, run / "config.yaml", run / "results.json")]
        for option, path in (("--plot", args.plot), ("--plot-classes", args.plot_classes)):
            if path is not None:
                check_output(option, path, inputs, args.overwrite)
        runs = read_runs(args.runs)
        if args.where is not None:
            runs = select(runs, args.where)
        rows = summarize(runs, group_by)
        write_figures(args, rows, runs)
        published, uncounted = add_published(args, rows, group_by)
    except (ValueError, OSError) as error:
        fail(parser, error)
    print(FORMATS[args.format]([*rows, *published], group_by), end="")
    print_remarks(rows, runs, uncounted, on_stdout=args.format == "md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Train every step of a class-incremental segmentation task.

A rerun of the same command continues where it stopped. Several processes: torchrun; the -- before main.py keeps its
argparse (Python 3.10 and 3.11) from taking --log for one of torchrun's own options. Exit code 2: an error to mend.
"""

import argparse
import os

from utils.arguments import add_config, add_device, new_parser

EXAMPLES = """
python main.py --config configs/demo.yaml
python main.py --config configs/voc.yaml --log voc_15-1 --dry-run
python main.py --config configs/voc.yaml --log finetune --set method=finetune --set train.batch_size=8
torchrun --nproc_per_node=2 -- main.py --config configs/voc.yaml --log voc_15-1
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line. Heavy imports wait until it is known to be right."""
    parser = new_parser("python main.py", __doc__, EXAMPLES)
    run = parser.add_argument_group("the run")
    add_config(run)
    run.add_argument(
        "--log",
        metavar="NAME",
        help="name of the run: results go to OUTPUT_DIR/NAME (default: the config's name)",
    )
    how = parser.add_argument_group("how it runs")
    add_device(how)
    how.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would run, and exit"
    )
    how.add_argument("--debug", action="store_true", help="show the traceback of user errors")
    # torch.distributed.launch passes this on top of the environment that torchrun sets.
    how.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Arguments → Config → plan → run; errors a user can mend end in one clear message and exit code 2."""
    parser = make_parser()
    args = parser.parse_args()
    from trainer.checks import check_config
    from trainer.config import load_config
    from trainer.plan import describe, prepare
    from trainer.precision import check_same_precision, settle_precision
    from trainer.run import run
    from utils.distributed import find_worker, process_group
    from utils.errors import RunError, explain
    from utils.signals import Interruption

    plan, interruption = None, Interruption()
    try:
        config = load_config(
            args.config,
            args.overrides,
            log=args.log,
            check=lambda config: check_config(config, find_worker(args.device)),
        )
        with interruption.listen(), process_group(args.device, config.distributed.timeout) as worker:
            config = settle_precision(config, worker.device)
            check_same_precision(config, worker)
            plan = prepare(config, worker)
            if not args.dry_run:
                run(plan, worker, interruption)
            elif worker.is_main:
                print(describe(plan, worker))
    except (RunError, ValueError, OSError, ImportError) as error:
        # Before the plan stands these are what a user can mend; later only a RunError is.
        if args.debug or (plan is not None and not isinstance(error, RunError)):
            raise
        # A text is no rank: then every process says so.
        says_so = not os.environ.get("LOCAL_RANK", "0").strip("0").isdecimal()
        if plan is not None and isinstance(error, RunError) and not error.met_by_all:
            says_so = True
        parser.exit(2, f"error: {explain(error)}\n" if says_so else None)


if __name__ == "__main__":
    main()

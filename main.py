"""Train every step of a class-incremental segmentation task: python main.py --config FILE --log NAME."""

import argparse
import os
from pathlib import Path


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line. Heavy imports wait until it is known to be right."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="A rerun of the same command continues after the last finished step. Several processes: "
        "torchrun --nproc_per_node=N -- main.py --config FILE --log NAME (without the --, argparse of "
        "Python 3.11 takes --log for one of torchrun's own options)",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as configs/demo.yaml")
    parser.add_argument(
        "--log", help="name of the run: results go to OUTPUT_DIR/NAME (default: the config's name)"
    )
    parser.add_argument(
        "--set",
        metavar="KEY.SUB=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a field of the config, as in --set train.batch_size=8 (repeatable)",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if any"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would run, and exit"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of user errors")
    # torch.distributed.launch passes this on top of the environment that torchrun sets.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser, parser.parse_args()


def main() -> None:
    """Arguments → Config → plan → run; errors a user can mend end in one clear message and exit code 2."""
    parser, args = parse_arguments()
    from trainer.checks import check_config
    from trainer.plan import describe, prepare
    from trainer.run import run
    from utils.config import load_config
    from utils.distributed import find_worker, process_group
    from utils.errors import RunError
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
            plan = prepare(config, worker)
            if not args.dry_run:
                run(plan, worker, interruption)
            elif worker.is_main:
                print(describe(plan, worker))
    except (RunError, ValueError, OSError, ImportError) as error:
        # Before the plan stands these are what a user can mend; later only a RunError is.
        if args.debug or (plan is not None and not isinstance(error, RunError)):
            raise
        says_so = os.environ.get("LOCAL_RANK", "0") == "0"
        if plan is not None and isinstance(error, RunError) and not error.met_by_all:
            says_so = True
        parser.exit(2, f"error: {error}\n" if says_so else None)


if __name__ == "__main__":
    main()

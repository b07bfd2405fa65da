"""Write a step of a run as a file that others can start from, with its entry and its model card.

The file holds the weights (float16 by default, half the size), what the method carries on, and the config without the
places of this machine. It is a checkpoint: init_from takes it, and so do predict, evaluate and export. The entry,
NAME.json, belongs into docs/base_models.json once the file lies at its address.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from utils.arguments import add_overwrite, fail, new_parser, to_path
from utils.files import check_output, write_atomic
from utils.units import format_size

EXAMPLES = """
python -m tools.publish runs/voc_15-1 --step 0 --url https://example.org/voc_15-1.pth --licence CC-BY-4.0
python -m tools.publish runs/voc_15-1 --name voc_15-1_r101 --dtype float32 --output shared
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.publish", __doc__, EXAMPLES)
    what = parser.add_argument_group("input")
    what.add_argument("run", type=to_path, metavar="RUN", help="folder of a run")
    what.add_argument(
        "--step", type=int, default=0, metavar="N", help="a finished step; default: 0, the base step"
    )
    how = parser.add_argument_group("output")
    how.add_argument(
        "--output", type=to_path, default=Path("published"), metavar="FOLDER", help="default: published"
    )
    how.add_argument("--name", help="name of the files and of the entry; default: the run's and the step")
    add_overwrite(how)
    how.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: float16")
    how.add_argument("--url", default="", help="address at which the file will lie; default: none yet")
    how.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the card")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    from tools.published.share import DTYPES, format_card, make_entry, slim  # PyTorch: not for --help
    from trainer.checkpoint import checkpoint_path, load_checkpoint
    from trainer.shared_base import is_address
    from utils.report.reading import read_results

    try:
        if args.url and not is_address(args.url):
            raise ValueError(f"--url {args.url}: expected an address, such as https://example.org/base.pth")
        results = read_results(args.run)
        if not 0 <= args.step < len(results["steps"]):
            raise ValueError(
                f"--step {args.step}: {args.run} has finished {len(results['steps'])} steps, 0 to "
                f"{len(results['steps']) - 1}"
            )
        source = checkpoint_path(args.run, args.step)
        name = args.name or f"{args.run.resolve().name}_step_{args.step}"
        for suffix in (".pth", ".json", ".md"):
            check_output("--output", args.output / f"{name}{suffix}", [source], args.overwrite)
        checkpoint = load_checkpoint(source)
        content = slim(checkpoint, DTYPES[args.dtype])
        entry = make_entry(content, checkpoint, results, args.url, args.licence)
        write_atomic(args.output / f"{name}.pth", content)
        text = json.dumps({name: entry}, indent=2, ensure_ascii=False) + "\n"
        write_atomic(args.output / f"{name}.json", text)
        write_atomic(args.output / f"{name}.md", format_card(name, entry, results))
    except (ValueError, OSError) as error:
        fail(parser, error)
    print(f"{args.output / name}.pth ({format_size(len(content))}), .json, .md; sha256 {entry['sha256']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

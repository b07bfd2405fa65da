"""Our time beside the floor of the hardware.

Every row runs the project's own modules and, in turns with them in the same process and on the same tensors, a floor
that no implementation could do without. `ratio` is ours over the floor; times are medians; `peak_mib` is what ours
takes at once beyond what is there before. `MFU` is the share that the passes of both networks make of what a large
matrix product reaches on the same device, in the same precision.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tools.bench.rows import ROWS
from tools.bench.setup import Row, Setup, default_configs
from trainer.config import load_config
from trainer.precision import settle_precision
from utils.arguments import add_device, add_overwrite, add_set, fail, new_parser, to_path
from utils.distributed import process_group
from utils.files import check_output, write_atomic
from utils.report.results import environment

EXAMPLES = """
python -m tools.benchmark all --json figures.json
python -m tools.benchmark step --config configs/voc.yaml --set train.compile=true --device cuda
"""
_COLUMNS = (
    "| row | what | ours | floor | ratio | aim | peak MiB | logits alive | images/s | MFU | MiB in all |"
)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("python -m tools.benchmark", __doc__, EXAMPLES)
    what = parser.add_argument_group("input and output")
    what.add_argument("rows", choices=[*ROWS, "all"], help="what to measure")
    what.add_argument(
        "--config",
        type=to_path,
        metavar="FILE",
        help="YAML file with the model, training and losses of step, scaling and ddp; default: DeepLabV3-R50, and "
        "for step the Segmenter too, crop 256, batch 4",
    )
    add_set(what, of="that model, training and losses")
    what.add_argument("--json", type=to_path, metavar="FILE", help="write the figures there, too")
    add_overwrite(what)
    how = parser.add_argument_group("how it runs")
    add_device(how, default="cpu")
    how.add_argument("--threads", type=int, metavar="N", help="threads of PyTorch; default: its own choice")
    how.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, one repetition: does it run? The figures mean nothing",
    )
    return parser


def format_row(row: Row) -> str:
    """One line of the Markdown table under _COLUMNS."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    times = [
        "" if seconds is None else f"{1e3 * seconds:.{0 if seconds > 0.1 else 2}f} ms"
        for seconds in (row.ours_s, row.floor_s)
    ]
    columns = (row.ratio, 2), (row.aim, 2), (row.peak_mib, 0), (row.logits_alive, 2), (row.images_per_s, 1)
    numbers = [number(*column) for column in (*columns, (row.mfu, 2), (row.total_mib, 0))]
    return "| " + " | ".join([row.name, row.what, *times, *numbers]) + " |"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What was measured on: processor or GPU, cores, threads, commit and versions."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    cores = os.cpu_count()
    return {"cpu": name, "cores": cores, "threads": torch.get_num_threads(), "gpu": gpu, **environment()}


def main() -> None:
    """Measure the rows asked for and print each as soon as it is there."""
    parser = make_parser()
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        if args.json is not None:
            check_output("--json", args.json, [args.config] if args.config else [], args.overwrite)
        configs = (
            [load_config(args.config, args.overrides)]
            if args.config
            else default_configs(args.quick, args.overrides)
        )
        with process_group(args.device) as worker:
            configs = [settle_precision(config, worker.device) for config in configs]
            setup = Setup(worker, configs, args.quick)
            machine = describe_machine(setup.device)
            print(
                f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
                f"PyTorch {torch.__version__}\n\n{_COLUMNS}\n|{'---|' * 11}",
                flush=True,
            )
            measured = []
            for name in ROWS if args.rows == "all" else [args.rows]:
                for row in ROWS[name](setup):
                    measured.append({**asdict(row), "ratio": row.ratio})
                    print(format_row(row), flush=True)
        if args.json is not None:
            content = {"machine": machine, "quick": args.quick, "rows": measured}
            write_atomic(args.json, json.dumps(content, indent=2) + "\n")
    except (ValueError, OSError) as error:
        fail(parser, error)


if __name__ == "__main__":
    main()

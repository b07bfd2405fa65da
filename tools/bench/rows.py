"""The rows of the benchmark: what is measured, against what."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from datasets.class_index import index_classes
from datasets.incremental import StepDataset, ValidationDataset
from datasets.transforms import EvaluateTransform, TrainTransform
from methods import METHODS, means
from models import DeepLabV3, SegOutput
from models.output import upsample
from tools.bench.flops import count_flops, fastest_product
from tools.bench.inputs import (
    IDENTITY,
    Stored,
    decode_mask,
    random_labels,
    random_output,
    random_sample,
    write_samples,
)
from tools.bench.iteration import Iteration, describe_model, describe_precision, time_iteration
from tools.bench.measure import Action, live_bytes, medians, peak_mib
from tools.bench.setup import CPU, Row, Setup, default_config
from trainer.checkpoint import new_model
from trainer.config import Config
from trainer.inference import autocast
from trainer.kernels import fastest_convolutions
from trainer.validation import evaluate
from utils.distributed import Worker
from utils.labels import IGNORE_INDEX

OBJECTIVES = tuple(name for name, method in METHODS.items() if method.trains)
ROOT = Path(__file__).resolve().parents[2]


def data(setup: Setup) -> Iterator[Row]:
    """One training sample from its files, as one worker of the loader makes it, against decoding the files."""
    import cv2

    num_samples = 2 if setup.quick else 20
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker of the loader has
    with tempfile.TemporaryDirectory() as folder:
        source = write_samples(Path(folder), num_files=4, num_ids=num_samples)
        transform = TrainTransform(512, 0.5, 2.0, (124.0, 116.0, 104.0))
        dataset = StepDataset(source, source.ids, IDENTITY, transform, seed=0, step=0)

        def ours() -> None:
            for i in range(num_samples):
                dataset[0, i]

        def floor() -> None:
            for image, mask in source.samples.values():
                cv2.imread(str(image))
                decode_mask(str(mask))

        times = medians({"ours": ours, "floor": floor}, setup.repetitions(15), CPU)
        ours_s, floor_s = times["ours"] / num_samples, times["floor"] / num_samples
        yield Row("data", "500x375 to crop 512", ours_s, floor_s, 2.2, peak_mib(ours, CPU))
    torch.set_num_threads(threads)


def objective(setup: Setup) -> Iterator[Row]:
    """All terms of every method, forward and backward, against plain cross-entropy, both of the grid's logits."""
    shapes = ((4, 21, 1), (2, 151, 10))
    for batch, num_classes, num_new in shapes[:1] if setup.quick else shapes:
        for name in OBJECTIVES:
            yield _objective(setup, name, batch, num_classes, num_new)


def _objective(setup: Setup, name: str, batch: int, num_classes: int, num_new: int) -> Row:
    size, device = 64 if setup.quick else 512, setup.device
    # A small network, whose outputs say what the method reads, of which size; their values are random ones.
    model = {"backbone": "test_resnet", "channels": 8 if setup.quick else 256}
    fields = f"method={name}", f"train.batch_size={batch}", f"train.crop_size={size}"
    iteration = Iteration(
        default_config(model, setup.quick, fields), [num_classes - num_new, num_new], setup.worker
    )
    method, images = iteration.learner.method, iteration.batch[0]
    labels = random_labels((batch, size, size), method.num_old, num_new, device)
    generator = torch.Generator(device).manual_seed(0)
    output, leaves = random_output(iteration.wrapped(images, full_size=False), size, generator)
    old, _ = random_output(iteration.old_model(images, full_size=False), size, generator)
    if "thresholds" in method.state:  # about half the pixels pass
        method.state["thresholds"].fill_(0.4)

    def clear_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    def ours() -> None:
        clear_gradients()
        targets = method.targets(labels, old)
        terms = means(method.terms(output, old, targets), targets.counts)
        torch.stack(list(terms.values())).sum().backward()

    def floor() -> None:
        clear_gradients()
        logits = F.interpolate(output.grid_logits, labels.shape[1:], mode="bilinear")
        F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX).backward()

    times = medians({"ours": ours, "floor": floor}, setup.repetitions(9), device)
    clear_gradients()
    alive = live_bytes(ours, device) / (output.pixel_logits.shape.numel() * output.grid_logits.element_size())
    clear_gradients()
    peak = peak_mib(ours, device)
    what = f"{name}, logits {tuple(output.pixel_logits.shape)}, {num_new} new"
    return Row("objective", what, times["ours"], times["floor"], 1.5 if name == "mbs" else 2.5, peak, alive)


def step(setup: Setup) -> Iterator[Row]:
    """One iteration without data, against its floor: the passes of both networks and the update."""
    for config in setup.configs:
        yield _step(setup, config)


@fastest_convolutions(sizes_stay=True)
def _step(setup: Setup, config: Config) -> Row:
    train, device = config.train, setup.device
    size = 128 if setup.quick else 8192 if device.type == "cuda" else 2048
    fastest = fastest_product(train.amp, device, size)
    iteration = Iteration(config, [20, 1], setup.worker)
    num_flops = count_flops(iteration.floor)
    actions: dict[str, Action] = {"ours": iteration.run, "student": iteration.student, "old": iteration.old}
    times = medians(actions, setup.repetitions(7), device)
    ours, peak = times["ours"], peak_mib(iteration.run, device)
    on_gpu = device.type == "cuda"
    return Row(
        "step",
        f"{describe_model(config)}, {describe_precision(config)}, crop {train.crop_size}, batch {train.batch_size}",
        ours,
        times["student"] + times["old"],
        1.05,
        peak,
        images_per_s=train.batch_size / ours,
        mfu=num_flops / ours / fastest,
        total_mib=torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
    )


def evaluation(setup: Setup) -> Iterator[Row]:
    """One image through evaluation, against the forward pass without upsampling."""
    size = 64 if setup.quick else 512
    backbone = setup.config.model.backbone if setup.quick else "resnet101"
    model_config = DeepLabV3.Options(name="deeplabv3", backbone=backbone)
    train = setup.config.train.model_copy(update={"crop_size": size})
    data = setup.config.data.model_copy(update={"num_workers": 0})
    config = setup.config.model_copy(update={"model": model_config, "train": train, "data": data})
    for num_classes, aim in ((21, 1.05), (151, 1.15)):
        yield _evaluation(setup, config, num_classes, aim)


def _evaluation(setup: Setup, config: Config, num_classes: int, aim: float) -> Row:
    size = config.train.crop_size
    model = new_model(config, [num_classes]).to(setup.device).eval()
    source, transform = Stored(*random_sample(0, size, size)), EvaluateTransform(size, "center_crop")
    dataset = ValidationDataset(source, ("a",), IDENTITY, transform)  # type: ignore[arg-type]
    images = dataset[0][0][None].to(setup.device)

    @torch.inference_mode()
    def forward() -> SegOutput:
        with autocast(config.train.amp, setup.device):
            output: SegOutput = model(images)
            return output

    grid_logits = forward().grid_logits

    @torch.inference_mode()
    def upsampling() -> None:
        upsample(grid_logits, images.shape[2:])

    def ours() -> None:
        evaluate(model, dataset, num_classes, config, setup.worker)

    actions = {"ours": ours, "forward": forward, "upsampling": upsampling}
    times = medians(actions, setup.repetitions(9), setup.device)
    what = f"{describe_model(config)}, {size} x {size}, {num_classes} classes"
    floor = times["forward"] - times["upsampling"]
    return Row("evaluate", what, times["ours"], floor, aim, peak_mib(ours, setup.device))


def index(setup: Setup) -> Iterator[Row]:
    """The classes of all masks with 2 workers, against bare decoding in 2 processes; then from the cache."""
    num_masks = 40 if setup.quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        source = write_samples(Path(folder) / "data", num_files=64, num_ids=num_masks)
        masks = [str(mask) for _, mask in source.samples.values()]

        def cold() -> None:
            index_classes(source, None, num_workers=2, progress=False)

        def bare() -> None:
            with ProcessPoolExecutor(2) as executor:
                for _ in executor.map(decode_mask, masks, chunksize=64):
                    pass

        def cached() -> None:
            index_classes(source, Path(folder) / "cache", num_workers=2, progress=False)

        times = medians({"cold": cold, "bare": bare}, setup.repetitions(5), CPU)
        yield Row("index", f"{num_masks} masks of 500x375, cold", times["cold"], times["bare"], 1.3)
        seconds = medians({"cached": cached}, setup.repetitions(5), CPU)["cached"]
        yield Row(
            "index", f"{num_masks} masks, cached (aim: 0.15 s)", seconds, peak_mib=peak_mib(cached, CPU)
        )


def startup(setup: Setup) -> Iterator[Row]:
    """The command line's help, against importing PyTorch."""
    commands = {"ours": [str(ROOT / "main.py"), "--help"], "floor": ["-c", "import torch"]}
    actions: dict[str, Action] = {
        name: partial(subprocess.run, [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        for name, arguments in commands.items()
    }
    times = medians(actions, setup.repetitions(5), CPU)
    yield Row("startup", "main.py --help against import torch", times["ours"], times["floor"], 1.3)


def scaling(setup: Setup) -> Iterator[Row]:
    """Iteration time and memory as classes, steps and image size grow; nothing is compared."""
    size = setup.config.train.crop_size
    tasks = [(size, [20, 1]), (size, [141, 10]), (size, [990, 10]), (size, [2, *[1] * 19])]
    tasks += [(factor * size // 2, [20, 1]) for factor in (3, 4)]
    for crop_size, num_classes in tasks[:2] if setup.quick else tasks:
        train = setup.config.train.model_copy(update={"crop_size": crop_size})
        config = setup.config.model_copy(update={"train": train})
        seconds, peak = time_iteration(setup, config, num_classes)
        what = f"{sum(num_classes)} classes, {len(num_classes)} steps, crop {crop_size}, batch {train.batch_size}"
        yield Row("scaling", what, seconds, peak_mib=peak)


def ddp(setup: Setup) -> Iterator[Row]:
    """2 ranks with a core (or GPU) each and a batch each, against 1 rank with one: 1 / ratio is the efficiency."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = setup, Path(folder)
        torch.multiprocessing.spawn(_ddp_rank, arguments, nprocs=2)
        one, two = torch.load(Path(folder) / "seconds.pt", weights_only=True)
    train = setup.config.train
    what = f"{describe_model(setup.config)}, crop {train.crop_size}, batch {train.batch_size} a rank"
    yield Row("ddp", what, two, one)


@fastest_convolutions(sizes_stay=True)
def _ddp_rank(rank: int, setup: Setup, folder: Path) -> None:
    """Alone and together in turns; rank 0 leaves the median seconds of an iteration of both."""
    torch.set_num_threads(1)
    on_gpu = setup.device.type == "cuda"
    device = torch.device("cuda", rank) if on_gpu else CPU
    dist.init_process_group("nccl" if on_gpu else "gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        alone = Iteration(setup.config, [20, 1], Worker(device))
        together = Iteration(setup.config, [20, 1], Worker(device, rank, 2))
        seconds: dict[str, list[float]] = {"alone": [], "together": []}
        for _ in range(setup.repetitions(5)):
            if rank == 0:
                seconds["alone"].append(medians({"alone": alone.run}, 1, device)["alone"])
            dist.barrier()
            seconds["together"].append(medians({"together": together.run}, 1, device)["together"])
            dist.barrier()
        if rank == 0:
            torch.save(tuple(float(np.median(values)) for values in seconds.values()), folder / "seconds.pt")
    finally:
        dist.destroy_process_group()


ROWS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "data": data,
    "objective": objective,
    "step": step,
    "evaluate": evaluation,
    "index": index,
    "startup": startup,
    "scaling": scaling,
    "ddp": ddp,
}
"""What the command line can measure, by name."""

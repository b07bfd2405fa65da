"""trainer/panels.py and utils/report/pictures.py: which images are shown, and what of them is kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.shapes import CLASSES, ShapesDataset
from datasets.source import SegmentationDataset
from datasets.tasks import build_task
from tests.support.data import stripes
from trainer.panels import MAX_SIDE, NUM_CANDIDATES, choose_images, join_panel, leave_out, shrink
from utils.errors import DataError
from utils.images import UInt8Array, make_palette
from utils.metrics import leave_out_unlabelled
from utils.report.pictures import IGNORED_COLOUR, read_panels, write_image, write_mask

TASK = build_task("2-1", ["background", "a", "b", "c", "d"])


@dataclass
class Labels:
    """A data set of labels and grey images; None is a label that cannot be read."""

    labels: dict[str, UInt8Array | None] = field(default_factory=dict)
    greys: dict[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.labels)

    def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
        label = self.labels[image_id]
        if label is None:
            raise DataError(f"{image_id}: broken")
        return np.full((*label.shape, 3), self.greys.get(image_id, 0), np.uint8), label


def choose(count: int, **labels: UInt8Array | None) -> list[str]:
    return choose_images(cast(SegmentationDataset, Labels(labels)), TASK, count)


def test_images_that_show_many_steps_come_first_then_many_classes() -> None:
    labels = {"base": stripes(0, 1, 2), "one": stripes(0, 3), "steps": stripes(1, 3, 4), "b": stripes(2)}
    assert choose(1, **labels) == ["steps"]
    # Of classes not shown yet only b is left, and the image of b alone differs more; in the order of the data set.
    assert choose(2, **labels) == ["steps", "b"]
    assert choose(9, **labels) == list(labels)
    assert choose(0, **labels) == []


def test_of_images_that_show_the_same_classes_those_that_look_different_come_first() -> None:
    greys = {"dark": 0, "darker": 10, "grey": 120, "light": 250}
    dataset = Labels({name: stripes(0, 1, 3) for name in greys}, greys)
    assert choose_images(cast(SegmentationDataset, dataset), TASK, 2) == ["dark", "light"]
    assert choose_images(cast(SegmentationDataset, dataset), TASK, 3) == ["dark", "grey", "light"]


def test_once_every_class_is_shown_other_sets_of_classes_come_first() -> None:
    labels = {
        "all": stripes(1, 2, 3, 4),
        "most": stripes(1, 2, 3),
        "one": stripes(4),
        "again": stripes(1, 2, 3, 4),
    }
    assert choose(2, **labels) == ["all", "one"]


@pytest.mark.parametrize("num_images", [1, 2, 64, 65, 127, 128, 1000])
def test_at_most_64_images_are_looked_at_evenly_from_the_first_to_the_last(num_images: int) -> None:
    @dataclass
    class Counted(Labels):
        asked: list[int] = field(default_factory=list)

        def read(self, image_id: str) -> tuple[UInt8Array, UInt8Array]:
            self.asked.append(int(image_id))
            return super().read(image_id)

    dataset = Counted({str(i): stripes(0, 1) for i in range(num_images)})
    choose_images(cast(SegmentationDataset, dataset), TASK, 1)
    assert len(dataset.asked) == min(num_images, NUM_CANDIDATES)
    assert (dataset.asked[0], dataset.asked[-1]) == (0, num_images - 1)
    steps = np.diff(dataset.asked)
    assert np.ptp(steps) <= 1 if num_images > 1 else len(steps) == 0


def test_specks_void_and_broken_images_show_nothing() -> None:
    speck = stripes(0)
    speck[0, :2] = 3  # 2 of 256 pixels
    assert choose(1, broken=None, speck=speck, void=stripes(255), shown=stripes(0, 3)) == ["shown"]
    assert choose(2, broken=None, empty=stripes(0)) == ["empty"]


def test_a_large_image_is_shrunk_with_its_masks_and_ids_are_not_mixed() -> None:
    image = torch.full((3, 100, 200), 7, dtype=torch.uint8)
    label = torch.zeros(400, 800, dtype=torch.uint8)
    label[:, 400:] = 9
    pixels, truth, prediction = shrink(image, label, label.flip(1))
    assert pixels.shape == (MAX_SIDE // 2, MAX_SIDE, 3)
    assert (pixels == 7).all()
    assert (truth[:, : MAX_SIDE // 2] == 0).all()
    assert (truth[:, MAX_SIDE // 2 :] == 9).all()
    assert (prediction == truth[:, ::-1]).all()


def test_a_panel_shows_image_label_and_prediction_in_the_palette() -> None:
    colours = [(0, 0, 0), (10, 20, 30), (1, 1, 1), (40, 50, 60)]
    panel = join_panel(
        np.full((4, 4, 3), 103, np.uint8),
        stripes(0, 1, 2, 255, height=4, width=4),
        stripes(3, height=4, width=4),
        colours,
    )
    assert panel.shape == (4, 12, 3)
    assert (panel[:, :4] == 103).all()
    assert panel[0, 4:8].tolist() == [[0, 0, 0], [10, 20, 30], [1, 1, 1], list(IGNORED_COLOUR)]
    assert (panel[:, 8:] == (40, 50, 60)).all()


@pytest.mark.parametrize("unlabelled", [{1}, {2}, {1, 2}, set()])
def test_what_is_left_of_a_label_is_what_the_scores_count(unlabelled: set[int]) -> None:
    """Pixel for pixel as the matrix: torch.randint draws every pair of label and prediction."""
    generator = torch.Generator().manual_seed(0)
    label, prediction = (torch.randint(0, 4, (40, 40), generator=generator).byte() for _ in range(2))
    kept = leave_out(label, prediction, unlabelled)
    counts = np.zeros((4, 4), np.int64)
    np.add.at(counts, (label.numpy(), prediction.numpy()), 1)
    left = np.zeros((4, 4), np.int64)
    np.add.at(left, (kept[kept < 255].numpy(), prediction[kept < 255].numpy()), 1)
    assert (left == leave_out_unlabelled(counts, unlabelled)).all()


def test_a_run_keeps_the_same_images_and_the_prediction_of_every_step(finished_run: Path) -> None:
    panels, problems = read_panels(finished_run, num_steps=2)
    assert problems == []
    assert len(panels) == 2
    data = ShapesDataset("val", 7, 32)
    task = build_task([["ring", "disc"], ["star", "cross"]], CLASSES)
    for panel in panels:
        image, label = data.read(panel.image_id)
        # The ground truth is that of the whole task: diamonds and triangles, which it leaves out, are background.
        assert (panel.ground_truth == task.remap_table()[label]).all()
        base, last = panel.predictions
        assert base is not None
        assert last is not None
        assert base.shape == last.shape == label.shape
        assert base.max() < 3, "step 0 knows background and two classes"
        # Step 0 is scored on no pixel of the classes to come, the last step on all.
        first, second = panel.scored
        assert first is not None
        assert second is not None
        assert (first == np.where(panel.ground_truth < 3, panel.ground_truth, 255)).all()
        assert (second == panel.ground_truth).all()
        with Image.open(finished_run / "panels" / panel.image_id / "image.jpg") as kept:
            assert np.abs(np.asarray(kept, dtype=int) - image).mean() < 20
        with Image.open(finished_run / "panels" / panel.image_id / "ground_truth.png") as mask:
            shown = np.asarray(mask.convert("RGB"))
        assert (
            shown
            == np.array(data.palette, dtype=np.uint8)[np.where(np.isin(label, task.class_ids), label, 0)]
        ).all()


def test_what_is_missing_or_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    mask, colours = stripes(0, 1, 255, height=8, width=9), make_palette(2)
    for name in ("a", "b"):
        write_image(tmp_path / "panels" / name / "image.jpg", np.zeros((8, 9, 3), np.uint8))
        write_mask(tmp_path / "panels" / name / "ground_truth.png", mask, colours)
        write_mask(tmp_path / "panels" / name / "step_0.png", mask, colours)
    (tmp_path / "panels" / "b" / "ground_truth.png").write_bytes(b"cut")
    write_mask(tmp_path / "panels" / "a" / "step_1.png", stripes(0, height=4, width=4), colours)
    (tmp_path / "panels" / "a" / "step_2.png").write_bytes(b"")
    panels, problems = read_panels(tmp_path, num_steps=4)
    assert [panel.image_id for panel in panels] == ["a"]
    kept = panels[0].predictions
    assert kept[0] is not None
    assert (kept[0] == mask).all()
    assert kept[1:] == [None, None, None]
    assert len(problems) == 3, "a prediction that was never made is no problem"
    assert all(
        name in text
        for name, text in zip(("step_1.png", "step_2.png", "ground_truth.png"), problems, strict=True)
    )


def test_an_image_that_is_empty_or_cut_is_left_out_and_named(tmp_path: Path) -> None:
    for name in ("cut", "empty", "whole"):
        write_image(tmp_path / "panels" / name / "image.jpg", np.zeros((64, 64, 3), np.uint8))
        write_mask(tmp_path / "panels" / name / "ground_truth.png", stripes(0, 1), make_palette(2))
    cut, empty, whole = (tmp_path / "panels" / name / "image.jpg" for name in ("cut", "empty", "whole"))
    cut.write_bytes(whole.read_bytes()[:-100])
    empty.write_bytes(b"")
    panels, problems = read_panels(tmp_path, num_steps=0)
    assert [(panel.image_id, panel.image) for panel in panels] == [("whole", whole.read_bytes())]
    assert len(problems) == 2
    assert problems[0].startswith(f"left out: {cut}: not an image that Pillow can decode (")
    assert problems[1].startswith(
        f"left out: {empty}: not an image that Pillow can decode (the file is empty)"
    )


def test_a_run_without_panels_has_none(tmp_path: Path) -> None:
    assert read_panels(tmp_path, num_steps=2) == ([], [])

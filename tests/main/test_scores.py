"""The scores of a run are those of the pixels that it counted, each once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.shapes import ShapesDataset
from tests.support.data import Mask
from tests.support.runs import CLASSES_OF, GROUPS, LEARNING_ORDER, SLIDING, Workplace, each_finished
from tests.support.struck import run_ranks


def read_val_labels(folder: Path, name: str) -> list[Mask]:
    """The validation labels of a data set as evaluation sees them, in data set ids."""
    if name == "shapes":
        dataset = ShapesDataset("val", 7, 32)
        return [dataset.read_label(image_id) for image_id in dataset.ids]
    patterns = {
        "voc": "SegmentationClassAug/val_*.png",
        "ade20k": "annotations/validation/*.png",
        "folder": "masks/val/*.png",
    }
    paths = sorted((folder / name).rglob(patterns[name]))
    # Images of 32 x 40 pixels, cropped in the centre to 32.
    return [np.asarray(Image.open(path))[:, 4:36] for path in paths]


@each_finished
@pytest.mark.parametrize("step", [0, 1])
def test_results_agree_with_iou_recomputed_from_the_confusion_matrix(
    place: Workplace, name: str, step: int
) -> None:
    run = place.finished(name)
    entry, (names, counts) = run.results["steps"][step], run.confusion(step)
    assert names == run.results["class_names"][: len(names)]
    iou: dict[str, float | None] = {}
    for c, class_name in enumerate(names):
        union = sum(counts[c]) + sum(row[c] for row in counts) - counts[c][c]
        # ADE20K's 'other' is void in evaluation, so background, although it is predicted, cannot occur.
        absent = union == 0 or (name == "ade20k" and c == 0)
        iou[class_name] = None if absent else counts[c][c] / union
    assert entry["per_class_iou"] == pytest.approx(iou)

    def mean(group: list[str]) -> float | None:
        known = [value for value in map(iou.__getitem__, group) if value is not None]
        return sum(known) / len(known) if known else None

    num_old = len(names) - len(entry["new_classes"])
    num_base = len(run.results["steps"][0]["new_classes"])
    groups = [names, names[:num_old], names[num_old:], names[:num_base], names[num_base:]]
    assert [entry[key] for key in GROUPS] == pytest.approx([mean(group) for group in groups])
    groups = [[class_name for class_name in group if class_name != "background"] for group in groups]
    found = [entry["without_background"][key] for key in GROUPS]
    assert found == pytest.approx([mean(group) for group in groups])
    # MiB counts background nowhere, PLOP as the top level does, MBS in all only, without classes of IoU 0.
    known = [name for name in names if iou[name] is not None]
    assert [group["miou"] for group in entry["groups"]["mib"].values()] == found
    assert entry["groups"]["mib"]["all"]["classes"] == [name for name in known if name != "background"]
    assert ("per_class_iou_of" in entry) is (name == "ade20k")
    if name == "ade20k":  # both count its label 0
        iou = entry["per_class_iou_of"]["plop"]
        assert iou["background"] is not None
        known = [name for name in names if iou[name] is not None]
    else:
        assert [group["miou"] for group in entry["groups"]["plop"].values()] == [entry[key] for key in GROUPS]
        assert [group["miou"] for group in entry["groups"]["mbs"].values()][1:] == found[1:]
    hit = [name for name in known if iou[name] != 0]
    assert entry["groups"]["plop"]["all"] == {"classes": known, "miou": pytest.approx(mean(known))}
    assert entry["groups"]["mbs"]["all"] == {"classes": hit, "miou": pytest.approx(mean(hit))}


@pytest.mark.parametrize("name", LEARNING_ORDER)
@pytest.mark.parametrize("step", [0, 1])
def test_confusion_matrix_counts_every_labelled_validation_pixel_once(
    place: Workplace, name: str, step: int
) -> None:
    names, counts = place.finished(name).confusion(step)
    row_of = {CLASSES_OF[name].index(class_name): row for row, class_name in enumerate(names)}
    void = {255} | {CLASSES_OF[name].index(class_name) for class_name in LEARNING_ORDER[name][len(names) :]}
    if name == "ade20k":
        void.add(0)
    labelled = [0] * len(names)
    for label in read_val_labels(place.folder, name):
        for class_id, count in zip(*np.unique(label, return_counts=True), strict=True):
            if class_id not in void:
                # What the task leaves out is background.
                labelled[row_of.get(class_id, 0)] += int(count)
    assert [sum(row) for row in counts] == labelled
    assert sum(labelled) > 0


def test_sliding_windows_with_flip_and_scales_count_every_pixel_once(place: Workplace) -> None:
    run = place.finished("sliding")
    assert run.process.returncode == 0, run.process.stderr
    labels = np.stack(read_val_labels(place.folder, "shapes"))
    ids = [CLASSES_OF["shapes"].index(name) for name in LEARNING_ORDER["shapes"]]
    _, counts = run.confusion(1)
    expected = [int((labels == i).sum()) for i in ids]
    expected[0] += int((~np.isin(labels, ids)).sum())  # what the task leaves out is background
    assert [sum(row) for row in counts] == expected


def test_two_ranks_slide_to_the_same_results(place: Workplace) -> None:
    whole, run = place.finished("sliding"), place.copy("sliding", "sliding_ranks")
    (run.folder / "results.json").unlink()
    process = run_ranks(*place.arguments("sliding_ranks", *SLIDING))
    assert process.returncode == 0, process.stderr
    assert [run.confusion(step) for step in (0, 1)] == [whole.confusion(step) for step in (0, 1)]
    assert run.results == {**whole.results, "device": "2 × cpu"}

"""What is wrong in files of CVAT, YOLO, Label Studio, VIA, Supervisely and Roboflow, and what the error must say."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
"""What is done to a folder of annotations."""


def replace(file: str, old: str, new: str) -> Change:
    """A change of the first place in a file that reads `old`."""

    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


def edit(file: str, change: Callable[[Any], Any]) -> Change:
    """A change of what a JSON file holds."""

    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return apply


def nothing(root: Path) -> None:
    """No change."""


XML, TASKS, VIA, ANN = "annotations.xml", "project.json", "via.json", "project/ds/ann/i0.png.json"
VIA_ENTRY = "i0.png123"


def regions(content: Any) -> Any:
    return content["_via_img_metadata"][VIA_ENTRY]["regions"]


def result(content: Any, number: int = 0) -> Any:
    return content[0]["annotations"][0]["result"][number]


CASES: list[tuple[str, Change, str]] = [
    (
        "cvat",
        replace(XML, "<annotations>", "<!DOCTYPE a [<!ENTITY x 'y'>]><annotations>"),
        "it declares a document type (a)",
    ),
    ("cvat", replace(XML, "<annotations>", "<a>" * 200), "nested more than 100 levels deep"),
    ("cvat", replace(XML, "</image>", ""), "not valid XML"),
    ("cvat", replace(XML, "<image ", "<track/><image "), "holds tracks of a video"),
    ("cvat", replace(XML, "<name>pear</name>", "<name>kiwi</name>"), "found the label 'kiwi' twice"),
    (
        "cvat",
        replace(XML, "<name>pear</name>", "<name>fig</name>"),
        "its label is not listed; allowed are kiwi, fig",
    ),
    ("cvat", replace(XML, 'id="1"', 'id="0"'), "image i0.png: found the id '0' twice"),
    ("cvat", replace(XML, 'name="i1.png"', 'name="i0.png"'), "image i0.png: found the name 'i0.png' twice"),
    ("cvat", replace(XML, 'name="i1.png"', 'name="../i1.png"'), "'../i1.png' lies outside"),
    ("cvat", replace(XML, 'height="8"', 'height="9"'), "drawn on an image of 16x9"),
    ("cvat", replace(XML, 'points="', 'points="nan,1;'), "image i0.png: polygon 0 ("),
    ("cvat", replace(XML, 'points="', 'points="1,2,3;'), "image i0.png: polygon 0 ("),
    ("cvat", replace(XML, 'xtl="', 'xtl="inf'), "image i0.png: box 1 ("),
    ("cvat", replace(XML, 'rle="', 'rle="7, '), "image i0.png: mask 3 ("),
    (
        "cvat",
        replace(XML, "<polygon", '<polyline label="pear" points="1,1;2,2"/><polygon'),
        "polyline 0 ('pear'): has no area",
    ),
    (
        "cvat",
        replace(XML, "<polygon", '<blob label="pear"/><polygon'),
        "blob 0 ('pear'): is no shape of CVAT's",
    ),
    (
        "cvat-masks",
        replace("masks/labelmap.txt", "kiwi:9,250,3::", "kiwi:9,250,999::"),
        "line 3: found 'kiwi:9,250,999::'",
    ),
    (
        "cvat-masks",
        replace("masks/labelmap.txt", "kiwi:9,250,3::", "kiwi:80,0,1::"),
        "its name or its colour is there twice",
    ),
    (
        "cvat-masks",
        replace("masks/labelmap.txt", "kiwi:9,250,3::\n", ""),
        "i0.png: found colours that no class has",
    ),
    ("cvat-masks", lambda root: (root / "photos/i1.png").unlink(), "i1.png: found 0 images"),
    ("yolo", replace("yolo/data.yaml", "['kiwi', 'pear']", "['kiwi', 'kiwi']"), "names: found 'kiwi' twice"),
    (
        "yolo",
        replace("yolo/data.yaml", "['kiwi', 'pear']", "[kiwi, 5]"),
        "names: found 1: 5; allowed are texts",
    ),
    ("yolo", replace("yolo/data.yaml", "../train", "../../outside"), "which is no folder below"),
    (
        "yolo",
        lambda root: (root / "yolo/train/labels/i0.txt").write_text("0 10 10 40 10 40 30"),
        "i0.txt: line 1: found 10; allowed are shares",
    ),
    (
        "yolo",
        lambda root: (root / "yolo/train/labels/i0.txt").write_text("0 nan 0 0 1 1 1"),
        "i0.txt: line 1: found nan",
    ),
    (
        "yolo",
        lambda root: (root / "yolo/train/labels/i0.txt").write_text("0 .1 .1 .2 .2"),
        "line 1 ('kiwi'): found a box (4 numbers)",
    ),
    (
        "yolo",
        lambda root: (root / "yolo/train/labels/i0.txt").write_text("0 .1 .1 .2 .2 .3 .3 .4"),
        "line 1: found 7 numbers",
    ),
    (
        "yolo",
        lambda root: (root / "yolo/train/labels/i0.txt").write_text("7 .1 .1 .2 .2 .3 .3"),
        "line 1: found the class 7; allowed are [0, 1]",
    ),
    ("label-studio", edit(TASKS, lambda c: c[1].update(id=0)), "task 0: its id is given to another task"),
    (
        "label-studio",
        edit(TASKS, lambda c: c[0]["annotations"].append(c[0]["annotations"][0])),
        "task 0: found 2 annotations of one image",
    ),
    (
        "label-studio",
        edit(TASKS, lambda c: c[0]["data"].update(image="s3://x/none.png")),
        "holds no none.png",
    ),
    (
        "label-studio",
        edit(TASKS, lambda c: result(c).update(image_rotation=90)),
        "(i0.png): result 0: image_rotation: found 90",
    ),
    (
        "label-studio",
        edit(TASKS, lambda c: result(c).update(original_width=17)),
        "found regions of images of several sizes",
    ),
    (
        "label-studio",
        edit(TASKS, lambda c: result(c)["value"].update(polygonlabels=["a", "b"])),
        "found the labels ['a', 'b']; allowed is one",
    ),
    (
        "label-studio",
        edit(TASKS, lambda c: result(c)["value"].update(points=[[1, 1, 1]])),
        "result 0 (polygonlabels): value: points[0]",
    ),
    ("label-studio", edit(TASKS, lambda c: result(c, 1).update(id="r0")), "found the region 'r0' twice"),
    (
        "label-studio",
        edit(TASKS, lambda c: result(c, 3)["value"].update(rle=[255] * 8)),
        "rle: found 4294967295 values; allowed are 512",
    ),
    ("label-studio", edit(TASKS, lambda c: result(c, 3)["value"]["rle"].pop()), "rle: is cut short"),
    (
        "label-studio",
        edit(TASKS, lambda c: result(c, 3)["value"].update(rle=[256])),
        "value: rle[0]: found 256",
    ),
    (
        "via",
        edit(VIA, lambda c: regions(c)[0]["region_attributes"].update(ripe="yes")),
        "say with --attribute which one",
    ),
    (
        "via",
        edit(VIA, lambda c: regions(c)[0].update(region_attributes={"fruit": ""})),
        "region 0: a name must not be empty",
    ),
    (
        "via",
        edit(VIA, lambda c: regions(c)[0].update(region_attributes={"fruit": 5})),
        "found 5; allowed is the name of one class",
    ),
    (
        "via",
        edit(VIA, lambda c: regions(c)[0]["shape_attributes"]["all_points_x"].pop()),
        "allowed are as many of both",
    ),
    (
        "via",
        edit(VIA, lambda c: regions(c)[0]["shape_attributes"].update(name="star")),
        "region 0: shape_attributes.name: found 'star'",
    ),
    (
        "via",
        edit(VIA, lambda c: regions(c)[1]["shape_attributes"].update(width="4")),
        "region 1: shape_attributes: width: found '4'",
    ),
    (
        "via",
        edit(VIA, lambda c: c["_via_img_metadata"][VIA_ENTRY].update(filename="i1.png")),
        "i1.png, twice; annotate an image once",
    ),
    (
        "supervisely",
        edit("project/meta.json", lambda c: c["classes"][0].update(title="pear")),
        "found the class 'pear' twice",
    ),
    (
        "supervisely",
        edit("project/meta.json", lambda c: c["classes"][0].update(title="fig")),
        "found the class 'kiwi'; allowed are fig, pear",
    ),
    ("supervisely", edit(ANN, lambda c: c["objects"][1].update(id=0)), "i0.png.json: found the id 0 twice"),
    ("supervisely", edit(ANN, lambda c: c["size"].update(width=17)), "drawn on an image of 17x8"),
    ("supervisely", edit(ANN, lambda c: c["objects"][0].update(geometryType="line")), "object 0 ("),
    (
        "supervisely",
        edit(ANN, lambda c: c["objects"][2]["bitmap"].update(data="!")),
        "bitmap: data is no PNG in zlib and base64",
    ),
    (
        "supervisely",
        edit(
            ANN,
            lambda c: c["objects"][2]["bitmap"].update(
                data=base64.b64encode(zlib.compress(bytes(10**7))).decode()
            ),
        ),
        "unpacks to more than its image has pixels",
    ),
    (
        "roboflow",
        replace("export/train/_classes.csv", "4, kiwi", "4, pear"),
        "line 4: found '2, pear'; its number or its name",
    ),
    (
        "roboflow",
        replace("export/train/_classes.csv", "4, kiwi", "x, kiwi"),
        "line 3: found 'x, kiwi'; allowed is a number",
    ),
    (
        "roboflow",
        replace("export/train/_classes.csv", "4, kiwi\n", ""),
        "i0_mask.png: found pixels of [4]; allowed are [0, 2]",
    ),
    (
        "roboflow",
        lambda root: (root / "export/train/i1.png").unlink(),
        "i1_mask.png: is the mask of no image",
    ),
]

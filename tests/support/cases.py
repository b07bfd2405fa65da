"""Annotation files that are wrong: what each is, how it is made, and what the error must say."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.support.annotators import png_bytes
from tests.support.prepare import SQUARE, shape, write_image, write_labelme

Content = dict[str, Any]


class Case(NamedTuple):
    """A wrong source: `make` writes it and gives the arguments that name it; the error holds all of `says`."""

    name: str
    make: Callable[[Path], list[str]]
    says: tuple[str, ...]


POLYGON = [[1, 1, 4, 1, 4, 3, 1, 3]]


def sound_coco() -> Content:
    """Four images of 8 x 6 with an object each, of two categories."""
    return {
        "images": [{"id": k, "file_name": f"{'abcd'[k]}.png", "width": 8, "height": 6} for k in range(4)],
        "annotations": [
            {
                "id": 10 + k,
                "image_id": k,
                "category_id": 1 + k // 2,
                "segmentation": copy.deepcopy(POLYGON),
                "iscrowd": 0,
                "area": 6,
                "bbox": [1, 1, 3, 2],
            }
            for k in range(4)
        ],
        "categories": [{"id": 1, "name": "pear"}, {"id": 2, "name": "kiwi"}],
    }


def write_coco_content(root: Path, content: Any) -> list[str]:
    """The JSON and its four images; returns the arguments that name them."""
    for name in "abcd":
        write_image(root / "photos" / f"{name}.png")
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "coco.json").write_text(text)
    return ["coco", str(root / "coco.json"), "--images", str(root / "photos")]


def coco(name: str, change: Callable[[Content], Any], *says: str) -> Case:
    """COCO's JSON, sound but for what `change` does to it or gives in its place."""

    def make(root: Path) -> list[str]:
        content = copy.deepcopy(sound_coco())
        changed = change(content)
        return write_coco_content(root, content if changed is None else changed)

    return Case(f"COCO: {name}", make, says)


def labelme(name: str, entry: dict[str, Any] | None, *says: str, **fields: Any) -> Case:
    """Labelme's folder of a.json, b.json and c.json, whose first has this shape and these fields."""

    def make(root: Path) -> list[str]:
        for stem in "bc":
            write_labelme(root / "in" / f"{stem}.json", shape("pear", *SQUARE))
        write_image(root / "in" / "a.png")
        shapes = [shape("pear", *SQUARE), *([entry] if entry is not None else [])]
        write_labelme(root / "in" / "a.json", *shapes, image="a.png")
        content = json.loads((root / "in" / "a.json").read_text())
        (root / "in" / "a.json").write_text(json.dumps(content | fields))
        return ["labelme", str(root / "in")]

    return Case(f"Labelme: {name}", make, says)


def put(value: Any, *path: str | int) -> Callable[[Content], None]:
    """A change that puts a value where the path of keys and positions leads."""

    def change(content: Content) -> None:
        place: Any = content
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


def segmentation(value: Any) -> Callable[[Content], None]:
    """A change of the first object's segmentation."""
    return put(value, "annotations", 0, "segmentation")


def counts(value: Any) -> Callable[[Content], None]:
    """A change of the first object to run lengths."""
    return segmentation({"size": [6, 8], "counts": value})


def merge_by_hand(content: Content) -> None:
    """Images 1, 2, 1, 2, pears on the first two and kiwis on the last two."""
    for k in range(4):
        content["images"][k]["id"] = content["annotations"][k]["image_id"] = 1 + k % 2


OF_A = "annotation 10 of a.png: "
NESTED = "[" * 100_000 + "]" * 100_000
MASK = base64.b64encode(png_bytes(np.ones((20, 20), bool))).decode()


def beside(root: Path) -> list[str]:
    """b.json, a copy of a.json, names a.png while b.png lies beside it."""
    for stem in "abc":
        write_labelme(root / "in" / f"{stem}.json", shape("pear", *SQUARE))
    (root / "in" / "b.json").write_bytes((root / "in" / "a.json").read_bytes())
    return ["labelme", str(root / "in")]


def damaged_jpeg(root: Path) -> list[str]:
    """a.jpg has 15 % of its bytes set to zero."""
    content = sound_coco()
    content["images"][0] |= {"file_name": "a.jpg", "width": 64, "height": 48}
    arguments = write_coco_content(root, content)
    path = root / "photos" / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    data = bytearray(path.read_bytes())
    start, end = int(0.45 * len(data)), int(0.6 * len(data))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return arguments


def outside(name: str) -> Callable[[Path], list[str]]:
    """COCO names a photo beside --images, or by its absolute path."""

    def make(root: Path) -> list[str]:
        content = sound_coco()
        write_image(root / "x.png")
        content["images"][0]["file_name"] = name.replace("ROOT", str(root))
        return write_coco_content(root, content)

    return make


def splits_share(root: Path) -> list[str]:
    """The same photo is in train and in val."""
    arguments = write_coco_content(root, sound_coco())
    (root / "val.json").write_text(json.dumps(sound_coco()))
    return [*arguments, "--val", str(root / "val.json")]


CASES = [
    coco("image ids given twice", merge_by_hand, "found the id 1 2 times (a.png, c.png); every image has its own"),
    coco("category ids given twice", put(1, "categories", 1, "id"), "categories: found the id 1 twice"),
    coco("annotation ids given twice", put(11, "annotations", 0, "id"), "annotation 11 of a.png: its id is given to"),
    coco("a photo listed twice", put("b.png", "images", 0, "file_name"), "b.png, twice; annotate an image once"),
    coco("counts of another sum", counts([5, 10]), OF_A, "found counts of 15 pixels", "6 x 8 = 48"),
    coco("no counts", counts([]), OF_A, "found counts of 0 pixels"),
    coco("counts of an empty text", counts(""), OF_A, "found counts of 0 pixels"),
    coco("counts of a text that is none", counts("5,10"), OF_A, "'5,10'", "not COCO's compressed text"),
    coco("counts of a text that is cut", counts("0`"), OF_A, "cut short or negative"),
    coco("negative counts", counts([-5, 53]), OF_A, "counts: found [-5, 53]; allowed are whole numbers from 0"),
    coco("counts of null", counts(None), OF_A, "counts: found None"),
    coco("counts of a size that no image has", segmentation({"size": [10**6] * 2, "counts": [10**12]}), OF_A,
         "found a run-length encoding of 1000000x1000000 (height x width); allowed is the image's 6x8"),
    coco("a polygon of 7 numbers", segmentation([[1, 1, 4, 1, 4, 3, 1]]), OF_A, "found 7 numbers"),
    coco("a polygon with NaN", segmentation([[1, 1, 4, float("nan"), 4, 3]]), OF_A, "found nan; allowed are finite"),
    coco("a polygon with Infinity", segmentation([[1, 1, float("inf"), 1, 4, 3]]), OF_A, "found inf; allowed are"),
    coco("a polygon that reaches far outside", segmentation([[1, 1, 1e8, 1, 4, 3]]), OF_A, "found x = 1e+08"),
    coco("a polygon in shares of the image", segmentation([[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]]), OF_A, "0 to 1"),
    coco("a polygon outside the image", segmentation([[9, 1, 12, 1, 12, 3]]), OF_A, "lies outside its image of 8x6"),
    coco("a polygon of pairs", segmentation([[[1, 1], [4, 1], [4, 3]]]), OF_A, "flat list of numbers x1, y1"),
    coco("a polygon of texts", segmentation([["1", "1", "4", "1", "4", "3"]]), OF_A, "flat list of numbers"),
    coco("a box instead of an outline", segmentation([[1, 1, 4, 4]]), OF_A, "boxes alone make no mask"),
    coco("height of text", put("6", "images", 0, "height"), "('a.png'): height: found '6'; allowed is a valid integer"),
    coco("height of 6.0", put(6.0, "images", 0, "height"), "('a.png'): height: found 6.0"),
    coco("height of -6", put(-6, "images", 0, "height"), "('a.png'): height: found -6"),
    coco("height of null", put(None, "images", 0, "height"), "('a.png'): height: found None"),
    coco("a size that the photo has not", put(40_000, "images", 0, "width"), "drawn on an image of 40000x6", "a.png"),
    coco("a category that is not there", put(7, "annotations", 0, "category_id"), OF_A, "found 7; allowed are [1, 2]"),
    coco("an image that is not there", put(7, "annotations", 0, "image_id"), "annotation 10: image_id: found 7"),
    coco("a category of number 5", put(5, "categories", 0, "name"), "category 1: name: found 5"),
    coco("an empty category", put(" ", "categories", 0, "name"), "category 1 (' '): name: found ' '", "not be empty"),
    coco("a category with a line break", put("pe\nar", "categories", 0, "name"), "must be one line of printable"),
    coco("a category with a surrogate", put("\ud800", "categories", 0, "name"), "category 1"),
    coco("'kiwi ' beside 'kiwi'", put("kiwi ", "categories", 0, "name"), "found the name 'kiwi' twice"),
    coco("NUL in a file name", put("a\0.png", "images", 0, "file_name"), "file_name: found 'a\\x00.png'"),
    coco("no categories", lambda c: c.pop("categories") and None, "categories: is missing"),
    coco("a list instead of an object", lambda c: [c], "not COCO's instances or panoptic annotations"),
    coco("a key given twice", lambda c: json.dumps(c)[:-1] + ', "images": []}', "holds 'images' twice"),
    coco("nested 100,000 deep", lambda c: '{"images": ' + NESTED + "}", "nested more than 100 levels deep"),
    Case("COCO: file_name '../x.png'", outside("../x.png"), ("'../x.png' lies outside",)),
    Case("COCO: an absolute file_name", outside("ROOT/x.png"), ("lies outside", "--allow-outside")),
    Case("COCO: file_name '..\\x.png'", outside("..\\x.png"), ("lies outside",)),
    Case("COCO: a photo in train and in val", splits_share, ("a.png: is in train and in val",)),
    Case("COCO: a JPEG with zeroed bytes", damaged_jpeg, ("a.jpg: the JPEG is damaged (Corrupt JPEG data",)),
    labelme("NaN in a polygon", shape("pear", (1, 1), (4, float("nan")), (4, 3)), "a.json: shape 1 ('pear'): ",
            "points[1][1]: found nan"),
    labelme("Infinity in a polygon", shape("pear", (1, 1), (float("inf"), 1), (4, 3)), "a.json: shape 1 ('pear'): ",
            "points[1][0]: found inf"),
    labelme("a polygon in shares of the image", shape("pear", (0.1, 0.1), (0.9, 0.1), (0.5, 0.9)), "0 to 1"),
    labelme("a mask of 20x20 where its points say 5x5", shape("pear", (1, 1), (5, 5), kind="mask", mask=MASK),
            "a.json: shape 1 ('pear'): found a mask of 20x20 (width x height) where its points say 5x5"),
    labelme("a rectangle of 3 points", shape("pear", (1, 1), (5, 1), (5, 5), kind="rectangle"),
            "found a rectangle of 3 points; allowed are"),
    labelme("a rectangle of 4 points that are none", shape("pear", (1, 1), (5, 1), (6, 5), (1, 5), kind="rectangle"),
            "found a rectangle of 4 points that are not its corners"),
    labelme("a circle of 3 points", shape("pear", (1, 1), (5, 1), (5, 5), kind="circle"), "a circle of 3 points"),
    labelme("a kind that is none", shape("pear", (1, 1), (5, 1), (5, 5), kind="star"), "found a star of 3 points"),
    labelme("a label of two lines", shape("pe\nar", *SQUARE), "a.json: shape 1 ('pe\\nar'): label: found 'pe\\nar'"),
    labelme("a label of number 5", {**shape("", *SQUARE), "label": 5}, "a.json: shape 1: label: found 5"),
    labelme("an empty label", shape("", *SQUARE), "label: found ''; a name must not be empty"),
    labelme("points of three numbers", {**shape("pear"), "points": [[1, 1, 1]] * 3}, "points[0]: found [1, 1, 1]"),
    labelme("imageHeight of text", None, "imageHeight: found '6'", imageHeight="6"),
    labelme("shapes of null", None, "shapes: found None", shapes=None),
    labelme("imagePath outside", None, "'../../x.png' lies outside", imagePath="../../x.png"),
    Case("Labelme: b.json names a.png while b.png lies beside it", beside,
         ("b.json: imagePath names a.png, but b.png lies beside it", "as ")),
]  # fmt: skip

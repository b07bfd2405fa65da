"""Files as the annotation tools write them, of a few random shapes, and the masks that a slow rasterisation gives."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from tests.support import slow_raster
from tests.support.data import Mask
from tests.support.prepare import write_image
from tests.support.slow_raster import Bools

LABELS = ("kiwi", "pear")
"""By alphabet, and so by class id from 1 on."""
WIDTH, HEIGHT = 16, 8
"""Powers of two: shares and percents of them are exact."""


class Drawn(NamedTuple):
    """One object: its label, the numbers that a tool writes for its kind, and the pixels that it has."""

    label: str
    kind: str
    numbers: Any
    region: Bools


def random_shape(rng: np.random.Generator, kind: str) -> Drawn:
    """A shape that has pixels in its image; coordinates are quarters of a pixel, those of traced ones whole."""
    label = LABELS[int(rng.integers(2))]
    while True:
        numbers, region = _draw(rng, kind)
        if region.any():
            return Drawn(label, kind, numbers, region)


def _draw(rng: np.random.Generator, kind: str) -> tuple[Any, Bools]:
    x0, y0 = rng.integers(0, WIDTH - 4), rng.integers(0, HEIGHT - 4)
    if kind in ("polygon", "inner polygon"):
        beyond = 0 if kind == "inner polygon" else 4
        ends = [4 * WIDTH + beyond + 1, 4 * HEIGHT + beyond + 1]
        points = _points(rng.integers(-beyond, ends, (int(rng.integers(3, 7)), 2)) / 4)
        return points, slow_raster.area(points, HEIGHT, WIDTH)
    if kind == "box":
        x, y, w, h = (
            float(x0),
            float(y0) + 0.25,
            float(rng.integers(1, 20)) / 4,
            float(rng.integers(4, 20)) / 4,
        )
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        return (x, y, w, h), slow_raster.area(corners, HEIGHT, WIDTH)
    if kind in ("ellipse", "circle"):
        centre, radius = (x0 + 1.25, y0 + 1.5), float(rng.integers(4, 12)) / 4
        radii = (radius, radius if kind == "circle" else radius / 2 + 0.5)
        degrees = 0 if kind == "circle" else int(rng.integers(0, 90))
        return (*centre, *radii, degrees), slow_raster.ellipse(centre, radii, degrees, HEIGHT, WIDTH)
    if kind == "traced":
        x1, x2 = np.sort(rng.choice(np.arange(x0 + 1, WIDTH), 2, replace=False))
        y1, y2 = np.sort(rng.choice(np.arange(y0 + 1, HEIGHT), 2, replace=False))
        points = _points(np.array([(x0, y0), (x2, y0), (x2, y1), (x1, y1), (x1, y2), (x0, y2)]))
        return points, slow_raster.traced(points, HEIGHT, WIDTH)
    if kind == "traced box":
        x1, y1 = int(rng.integers(x0 + 1, WIDTH)), int(rng.integers(y0 + 1, HEIGHT))
        region = np.zeros((HEIGHT, WIDTH), bool)
        region[y0 : y1 + 1, x0 : x1 + 1] = True
        return (int(x0), int(y0), x1, y1), region
    window = rng.random((3, 4)) < 0.6  # a mask whose window ends where its pixels do
    window[0, 0] = window[-1, -1] = True
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[y0 : y0 + 3, x0 : x0 + 4] = window
    return (int(x0), int(y0), window), region


def _points(array: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in array]


def run_lengths(flat: Bools) -> list[int]:
    """Run lengths of a flat mask, of zeros first."""
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return [int(length) for length in np.diff([0, *edges, flat.size])]


def png_bytes(mask: Bools) -> bytes:
    """A mask as a PNG of one bit."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


Drawings = Mapping[str, Sequence[Drawn]]
"""The shapes of every image, by its stem."""


def write_images(folder: Path, drawings: Drawings) -> None:
    """An image for every drawing."""
    for stem in drawings:
        write_image(folder / f"{stem}.png", WIDTH, HEIGHT)


def expected(shapes: Sequence[Drawn]) -> Mask:
    """The mask of shapes."""
    return slow_raster.paint([(1 + LABELS.index(s.label), s.region) for s in shapes], HEIGHT, WIDTH)


def write_coco(root: Path, drawings: Drawings) -> list[str]:
    """COCO's instances."""
    images, annotations = list[Any](), list[Any]()
    for number, (stem, shapes) in enumerate(drawings.items()):
        images.append({"id": 5 + number, "file_name": f"{stem}.png", "width": WIDTH, "height": HEIGHT})
        for shape in shapes:
            if shape.kind == "polygon":
                segmentation: Any = [[value for point in shape.numbers for value in point]]
            else:
                segmentation = {"size": [HEIGHT, WIDTH], "counts": run_lengths(shape.region.T.reshape(-1))}
            category = 3 + LABELS.index(shape.label)
            entry = {"id": len(annotations), "image_id": 5 + number, "category_id": category, "iscrowd": 0}
            rows, columns = np.nonzero(shape.region)
            corner = [int(columns.min()), int(rows.min())]
            box = [*corner, int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            more = {"area": int(shape.region.sum()), "bbox": box}
            annotations.append(entry | more | {"segmentation": segmentation})
    categories = [{"id": 3 + k, "name": label} for k, label in enumerate(LABELS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco.json").write_text(json.dumps(content))
    write_images(root / "photos", drawings)
    return ["coco", str(root / "coco.json"), "--images", str(root / "photos")]


def write_labelme(root: Path, drawings: Drawings) -> list[str]:
    """Labelme's JSON files."""
    write_images(root / "photos", drawings)
    for stem, shapes in drawings.items():
        entries: list[dict[str, Any]] = []
        for shape in shapes:
            entry: dict[str, Any] = {"label": shape.label, "group_id": None, "flags": {}}
            if shape.kind == "mask":
                x, y, window = shape.numbers
                points = [[x, y], [x + 3, y + 2]]
                entry |= {"shape_type": "mask", "mask": base64.b64encode(png_bytes(window)).decode()}
            elif shape.kind == "traced box":
                x0, y0, x1, y1 = shape.numbers
                points = [[x1, y0], [x0, y1]]
                entry["shape_type"] = "rectangle"
            else:
                points = [list(point) for point in shape.numbers]
                entry["shape_type"] = "polygon"
            entries.append(entry | {"points": points})
        content: dict[str, Any] = {
            "version": "5.5.0",
            "imagePath": f"{stem}.png",
            "imageData": None,
            "shapes": entries,
        }
        content |= {"imageWidth": WIDTH, "imageHeight": HEIGHT}
        (root / "photos" / f"{stem}.json").write_text(json.dumps(content))
    return ["labelme", str(root / "photos")]


def write_cvat(root: Path, drawings: Drawings) -> list[str]:
    """CVAT's XML."""
    write_images(root / "photos", drawings)
    labels = "".join(
        f"<label><name>{label}</name><color></color><type>any</type></label>" for label in LABELS
    )
    images = []
    for number, (stem, shapes) in enumerate(drawings.items()):
        inner = ""
        for shape in shapes:
            kind, fields = shape.kind, ""
            if kind == "polygon":
                fields = "points=" + quoteattr(";".join(f"{x:.2f},{y:.2f}" for x, y in shape.numbers))
            elif kind == "box":
                x, y, w, h = shape.numbers
                fields = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
            elif kind == "ellipse":
                cx, cy, rx, ry, degrees = shape.numbers
                fields = f'cx="{cx:.2f}" cy="{cy:.2f}" rx="{rx}" ry="{ry}" rotation="{degrees}"'
            else:
                x, y, window = shape.numbers
                runs = ", ".join(map(str, run_lengths(window.reshape(-1))))
                fields = f'rle="{runs}" left="{x}" top="{y}" width="4" height="3"'
            inner += (
                f'<{kind} label="{shape.label}" source="manual" occluded="0" {fields} z_order="0"></{kind}>'
            )
        size = f'width="{WIDTH}" height="{HEIGHT}"'
        images.append(f'<image id="{number}" name="{stem}.png" {size}>{inner}</image>')
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    content = f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"
    (root / "annotations.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?>{content}')
    return ["cvat", str(root / "annotations.xml"), "--images", str(root / "photos")]


def write_yolo(root: Path, drawings: Drawings) -> list[str]:
    """YOLO's segments, the folder of images as Roboflow writes it."""
    write_images(root / "yolo" / "train" / "images", drawings)
    (root / "yolo" / "train" / "labels").mkdir()
    (root / "yolo" / "data.yaml").write_text(f"train: ../train/images\nnc: 2\nnames: {[*LABELS]}\n")
    for stem, shapes in drawings.items():
        lines = [
            " ".join([str(LABELS.index(s.label)), *(f"{x / WIDTH} {y / HEIGHT}" for x, y in s.numbers)])
            for s in shapes
        ]
        (root / "yolo" / "train" / "labels" / f"{stem}.txt").write_text("\n".join(lines))
    return ["yolo", str(root / "yolo" / "data.yaml")]


def write_label_studio(root: Path, drawings: Drawings) -> list[str]:
    """Label Studio's JSON, of images that were uploaded."""
    write_images(root / "photos", drawings)
    tasks = []
    for number, (stem, shapes) in enumerate(drawings.items()):
        results = []
        for k, shape in enumerate(shapes):
            kind = {"box": "rectangle", "mask": "brush"}.get(shape.kind, shape.kind)
            value: dict[str, Any] = {f"{kind}labels": [shape.label]}
            if kind == "polygon":
                value |= {
                    "points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in shape.numbers],
                    "closed": True,
                }
            elif kind == "rectangle":
                x, y, w, h = shape.numbers
                value |= {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "rotation": 0}
                value |= {"width": 100 * w / WIDTH, "height": 100 * h / HEIGHT}
            elif kind == "ellipse":
                cx, cy, rx, ry, degrees = shape.numbers
                value |= {"x": 100 * cx / WIDTH, "y": 100 * cy / HEIGHT, "rotation": degrees}
                value |= {"radiusX": 100 * rx / WIDTH, "radiusY": 100 * ry / HEIGHT}
            else:
                value |= {"format": "rle", "rle": pack_brush(shape.region)}
            size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
            results.append(
                {"id": f"r{k}", "type": f"{kind}labels", "value": value, "to_name": "image", **size}
            )
        results.append({"id": "x", "type": "choices", "value": {"choices": ["ripe"]}, "to_name": "image"})
        task = {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{stem}.png"}}
        tasks.append(task | {"annotations": [{"id": number, "was_cancelled": False, "result": results}]})
    tasks.append({"id": 99, "data": {"image": "/data/upload/1/new.png"}, "annotations": []})
    (root / "project.json").write_text(json.dumps(tasks))
    return ["label-studio", str(root / "project.json"), "--images", str(root / "photos")]


def pack_brush(region: Bools) -> list[int]:
    """Label Studio's run lengths of an RGBA image that is opaque where the region is, single values between runs."""
    values = (np.repeat(region.reshape(-1, 1), 4, axis=1) * 255).reshape(-1).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (1, 3, 8, 16))
    position = 0
    while position < len(values):
        length = next(
            (k for k in range(1, len(values) - position) if values[position + k] != values[position]), 0
        )
        length = length or len(values) - position
        if length >= 8:
            length = min(length, 256)
            bits += f"1{2:02b}{length - 1:08b}{values[position]:08b}"
        else:
            length = min(8, len(values) - position)
            bits += f"0{1:02b}{length - 1:03b}" + "".join(
                f"{v:08b}" for v in values[position : position + length]
            )
        position += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def write_via(root: Path, drawings: Drawings) -> list[str]:
    """A project of VIA 2."""
    write_images(root / "photos", drawings)
    entries = {}
    for stem, shapes in drawings.items():
        regions = []
        for shape in shapes:
            if shape.kind == "polygon":
                xs, ys = zip(*shape.numbers, strict=True)
                fields: dict[str, Any] = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            elif shape.kind == "box":
                fields = {"name": "rect"} | dict(
                    zip(("x", "y", "width", "height"), shape.numbers, strict=True)
                )
            elif shape.kind == "circle":
                cx, cy, r, *_ = shape.numbers
                fields = {"name": "circle", "cx": cx, "cy": cy, "r": r}
            else:
                cx, cy, rx, ry, degrees = shape.numbers
                fields = {
                    "name": "ellipse",
                    "cx": cx,
                    "cy": cy,
                    "rx": rx,
                    "ry": ry,
                    "theta": np.radians(degrees),
                }
            regions.append({"shape_attributes": fields, "region_attributes": {"fruit": shape.label}})
        name = f"{stem}.png"
        entries[f"{name}123"] = {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}
    (root / "via.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": entries}))
    return ["via", str(root / "via.json"), "--images", str(root / "photos")]


def write_supervisely(root: Path, drawings: Drawings) -> list[str]:
    """A project of Supervisely."""
    write_images(root / "project" / "ds" / "img", drawings)
    (root / "project" / "ds" / "ann").mkdir()
    (root / "project" / "meta.json").write_text(
        json.dumps({"classes": [{"title": label, "shape": "any"} for label in LABELS], "tags": []})
    )
    for stem, shapes in drawings.items():
        objects: list[dict[str, Any]] = []
        for shape in shapes:
            entry: dict[str, Any] = {"id": len(objects), "classTitle": shape.label}
            if shape.kind == "mask":
                x, y, window = shape.numbers
                data = base64.b64encode(zlib.compress(png_bytes(window))).decode()
                entry |= {"geometryType": "bitmap", "bitmap": {"data": data, "origin": [x, y]}}
            elif shape.kind == "traced box":
                x0, y0, x1, y1 = shape.numbers
                entry |= {
                    "geometryType": "rectangle",
                    "points": {"exterior": [[x0, y0], [x1, y1]], "interior": []},
                }
            else:
                entry |= {"geometryType": "polygon", "points": {"exterior": shape.numbers, "interior": []}}
            objects.append(entry)
        content = {
            "description": "",
            "tags": [],
            "size": {"height": HEIGHT, "width": WIDTH},
            "objects": objects,
        }
        (root / "project" / "ds" / "ann" / f"{stem}.png.json").write_text(json.dumps(content))
    return ["supervisely", str(root / "project")]


def write_roboflow(root: Path, drawings: Drawings) -> list[str]:
    """Roboflow's semantic masks."""
    folder = root / "export" / "train"
    write_images(folder, drawings)
    (folder / "_classes.csv").write_text("Pixel Value, Class\n0, background\n4, kiwi\n2, pear\n")
    for stem, shapes in drawings.items():
        Image.fromarray(np.array([0, 4, 2], np.uint8)[expected(shapes)]).save(folder / f"{stem}_mask.png")
    return ["roboflow", str(root / "export")]


def write_cvat_masks(root: Path, drawings: Drawings) -> list[str]:
    """CVAT's masks in colours."""
    write_images(root / "photos", drawings)
    folder = root / "masks"
    (folder / "SegmentationClass").mkdir(parents=True)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "kiwi:9,250,3::", "pear:80,0,1::"]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    for stem, shapes in drawings.items():
        colours = np.array([(0, 0, 0), (9, 250, 3), (80, 0, 1)], np.uint8)
        Image.fromarray(colours[expected(shapes)]).save(folder / "SegmentationClass" / f"{stem}.png")
    return ["cvat-masks", str(folder), "--images", str(root / "photos")]


WRITERS: dict[str, tuple[Callable[[Path, Drawings], list[str]], tuple[str, ...]]] = {
    "labelme": (write_labelme, ("traced", "traced box", "mask")),
    "coco": (write_coco, ("polygon", "mask")),
    "cvat": (write_cvat, ("polygon", "box", "ellipse", "mask")),
    "cvat-masks": (write_cvat_masks, ("polygon",)),
    "yolo": (write_yolo, ("inner polygon",)),
    "label-studio": (write_label_studio, ("polygon", "box", "ellipse", "mask")),
    "via": (write_via, ("polygon", "box", "circle", "ellipse")),
    "supervisely": (write_supervisely, ("traced", "traced box", "mask")),
    "roboflow": (write_roboflow, ("polygon",)),
}
"""What writes a format, and the kinds of shapes that it has."""

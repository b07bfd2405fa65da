"""Whatever a JSON of COCO or Labelme holds: right masks, or exit 2 with a name and nothing left behind.

PREPARE_FUZZ_EXAMPLES sets the number of examples; in the suite it is 200.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tests.support import slow_raster
from tests.support.cases import POLYGON, sound_coco, write_coco_content
from tests.support.data import Mask
from tests.support.prepare import NO_WORKERS, SQUARE, memory_folder, read, shape, write_image
from tests.support.slow_raster import Bools
from tools.prepare_folder import main

EXAMPLES = int(os.environ.get("PREPARE_FUZZ_EXAMPLES", "200"))
SECONDS, BYTES = 1.0, 1 << 30

SOUND_COUNTS = [8, 6, 30, 4]
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, 2, 3, 8, 6, -1, 10**20, 0.5, 6.0, -0.0, float("nan"), float("inf"), 1e300]
        + [
            "",
            " ",
            "40",
            "pear",
            "Background",
            "kiwi ",
            "a\nb",
            "\0",
            "\ud800",
            "../a.png",
            "/etc/passwd",
            "a.png",
        ]
        + [[], {}, [[]], [1], [6, 8], [SOUND_COUNTS], POLYGON, [POLYGON[0][:7]], [[[1, 1], [4, 1], [4, 3]]]]
        + [
            {"size": [6, 8], "counts": c}
            for c in (SOUND_COUNTS, [5, 10], [], "", None, [-1, 49], "0`", "<84")
        ]
        + [{"size": s, "counts": SOUND_COUNTS} for s in ([8, 6], [10**6, 10**6], ["6", 8], None)]
    ),
    st.integers(-50, 50),
    st.floats(-20, 20),
    st.text(max_size=4),
    st.lists(st.floats(-3, 12), min_size=6, max_size=8).map(lambda ring: [ring]),
    st.recursive(
        st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=4,
    ),
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def change(data: st.DataObject, content: Any) -> Any:
    """Put values in places, leave some out, give some twice."""
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*places(content)]))
        kind = data.draw(st.sampled_from(["put", "put", "put", "drop", "twice"]))
        if not path:
            if kind == "put":
                return copy.deepcopy(data.draw(VALUES))
            continue
        parent = content
        for part in path[:-1]:
            parent = parent[part]
        if kind == "put":
            parent[path[-1]] = copy.deepcopy(data.draw(VALUES))
        elif kind == "drop":
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.append(json.loads(json.dumps(parent[int(path[-1])])))
    return content


def outcome(arguments: list[str], output: Path) -> tuple[int, str]:
    """Exit code and what is said; fails where it takes long, or much memory."""
    said, code = io.StringIO(), 0
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main([*arguments, "--output", str(output), *NO_WORKERS])
        except SystemExit as end:
            code = int(end.code or 0)
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    return code, said.getvalue()


def coco_region(found: Any) -> Bools:
    """What a segmentation that has been accepted draws: the slow rule for polygons, pycocotools for run lengths."""
    if isinstance(found, list):
        rings = [list(zip(ring[::2], ring[1::2], strict=True)) for ring in found]
        return np.any([slow_raster.area(ring, 6, 8) for ring in rings], axis=0)
    encoded = coco_mask.frPyObjects(found, 6, 8) if isinstance(found["counts"], list) else found
    return np.asarray(coco_mask.decode(encoded), bool)


def coco_masks(content: Any, classes: list[str]) -> dict[str, Mask]:
    """The mask of every image, by its file's stem, of a JSON that has been accepted."""
    names = {c["id"]: c["name"].strip() for c in content["categories"]}
    masks = {}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        single = [a for a in own if not a.get("iscrowd")]
        regions = [
            (class_of(names[a["category_id"]], classes), coco_region(a["segmentation"])) for a in single
        ]
        crowds = [coco_region(a["segmentation"]) for a in own if a.get("iscrowd")]
        mask = slow_raster.paint(regions, 6, 8)
        covered = slow_raster.paint([(1, region) for _, region in regions], 6, 8) == 1
        if crowds:
            mask[np.any(crowds, axis=0) & ~covered] = 255
        masks[Path(image["file_name"]).stem] = mask
    return masks


def class_of(label: str, classes: list[str]) -> int:
    """The class id of a label; `Background` is background."""
    return 0 if label.casefold() == "background" else classes.index(label)


FUZZ = settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    database=None,
    phases=(Phase.generate,) if EXAMPLES <= 200 else (Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@FUZZ
@given(data=st.data())
def test_a_changed_coco_json_gives_right_masks_or_a_name(data: st.DataObject) -> None:
    content = change(data, copy.deepcopy(sound_coco()))
    with memory_folder() as place:
        root = Path(place)
        code, said = outcome(write_coco_content(root, json.dumps(content)), root / "out")
        if code:
            assert code == 2
            assert "coco.json" in said or "photos" in said or "classes" in said or "no image for" in said
            assert not (root / "out").exists()
            return
        (names,) = (root / "out").glob("classes.*")
        assert names.name == "classes.txt"
        classes = names.read_text().splitlines()
        for stem, mask in coco_masks(content, classes).items():
            np.testing.assert_array_equal(read(root / "out", stem), mask)


@FUZZ
@given(data=st.data())
def test_a_changed_labelme_json_gives_right_masks_or_a_name(data: st.DataObject) -> None:
    shapes = [shape("pear", *SQUARE), shape("kiwi", (5, 1), (7, 4), kind="rectangle")]
    content: dict[str, Any] = {"version": "5.5.0", "imagePath": "a.png", "imageData": None, "shapes": shapes}
    content |= {"imageHeight": 6, "imageWidth": 8}
    sound = json.dumps(content)
    changed = change(data, json.loads(sound))
    with memory_folder() as place:
        root = Path(place)
        for stem in "ab":
            write_image(root / "in" / f"{stem}.png")
        (root / "in" / "a.json").write_text(json.dumps(changed))
        (root / "in" / "b.json").write_text(sound.replace("a.png", "b.png"))
        code, said = outcome(["labelme", str(root / "in")], root / "out")
        if code:
            assert code == 2
            assert "a.json" in said
            assert not (root / "out").exists()
            return
        classes = (root / "out" / "classes.txt").read_text().splitlines()
        regions = []
        for entry in changed["shapes"]:
            regions.append((class_of(entry["label"].strip(), classes), labelme_region(entry)))
        np.testing.assert_array_equal(read(root / "out", "a"), slow_raster.paint(regions, 6, 8))


def labelme_region(entry: dict[str, Any]) -> Bools:
    """What an accepted shape draws, by Pillow, as labelme does."""
    points, kind = [tuple(point) for point in entry["points"]], entry.get("shape_type")
    image = Image.new("1", (8, 6))
    draw = ImageDraw.Draw(image)
    if kind == "rectangle":
        xs, ys = zip(*points, strict=True)
        draw.rectangle((min(xs), min(ys), max(xs), max(ys)), outline=1, fill=1)
    else:
        draw.polygon(points, outline=1, fill=1)
    return np.array(image)


@pytest.mark.parametrize(
    "content", ['{"a": ' * 5000 + "1" + "}" * 5000, "[" * 100_000, "{" * 100_000, '"' + "\\ud800" * 9 + '"']
)
def test_a_text_that_is_hardly_json_is_named(tmp_path: Path, content: str) -> None:
    code, said = outcome(write_coco_content(tmp_path, content), tmp_path / "out")
    assert code == 2
    assert f"{tmp_path / 'coco.json'}: " in said

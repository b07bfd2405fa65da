"""COCO's annotations: one JSON for all images, of instances or of panoptic PNGs."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tools.prepare.checked import (
    Checked,
    ColourValue,
    Name,
    brief,
    check,
    load_json,
    repeated,
)
from tools.prepare.coco_instances import Annotation, read_shapes
from tools.prepare.coco_panoptic import Panoptic, read_panoptic
from tools.prepare.coco_tables import Entry, Image, id_in_table
from tools.prepare.samples import Annotations, Format, Sample, count_names, draw_shapes, make_sample
from utils.errors import DataError


class Document(Checked):
    """The JSON as a whole."""

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


class Category(Checked):
    """What an object may be."""

    id: int
    name: Name
    color: ColourValue | None = None


def read(args: argparse.Namespace) -> dict[str, Annotations]:
    """The annotations of the JSON, and of that of the validation images where one is given."""
    found = {"train": read_coco(args.source, args.images, args.masks, args.allow_outside)}
    if args.val:
        found["val"] = read_coco(args.val, args.val_images or args.images, args.val_masks, args.allow_outside)
    return found


def read_coco(
    file: Path, image_folder: Path, mask_folder: Path | None, allow_outside: bool = False
) -> Annotations:
    """COCO's JSON of instances or, where annotations have segments, of panoptic PNGs; labels by category id.

    mask_folder: of the panoptic PNGs; None looks beside the JSON in a folder of its name. Images that have no
    annotation show background, in the panoptic format none may lack one.
    Raises DataError or OSError where the file is no such JSON.
    """
    problems: list[str] = []
    document = check(Document, load_json(file), str(file), problems)
    if document is None:
        expected = "expected images, annotations and categories that refer to each other by id"
        raise DataError(
            "\n".join([*problems, f"{file}: not COCO's instances or panoptic annotations; {expected}"])
        )
    names, colours = _read_categories(file, document, problems)
    images = _read_images(file, document, problems)
    is_panoptic = any(isinstance(a, dict) and "segments_info" in a for a in document.annotations)
    if is_panoptic:
        draws = [read_panoptic(file, image, names, mask_folder or file.with_suffix("")) for image in images]
    else:
        _check_annotation_ids(file, images)
        draws = [((file,), partial(draw_shapes, read_shapes(file, image, names))) for image in images]
    samples = [
        _make_sample(file, image, image_folder, allow_outside, sources, draw)
        for image, (sources, draw) in zip(images, draws, strict=True)
    ]
    labels = [name for _, name in sorted(names.items()) if name is not None]
    bare = [image.name for image in images if not image.annotations]
    notes = (
        [f"{file}: {count_names(bare)} without an annotation: background throughout"]
        if bare and not is_panoptic
        else []
    )
    return Annotations(samples, labels, image_folder, colours, problems, notes)


def _read_categories(
    file: Path, document: Document, problems: list[str]
) -> tuple[dict[int, str | None], dict[str, Any]]:
    """Name by id, None of a damaged category, and colour by name."""
    found = [
        check(Category, raw, f"{file}: category {id_in_table(raw, number)}", problems)
        for number, raw in enumerate(document.categories)
    ]
    categories = sorted((category for category in found if category is not None), key=lambda c: c.id)
    for what, values in (("id", [c.id for c in categories]), ("name", [c.name for c in categories])):
        problems += [
            f"{file}: categories: found the {what} {value!r} twice; every category has its own: "
            + ("number them anew" if what == "id" else "two categories share a name, rename one")
            for value in repeated(values)
        ]
    given = [raw["id"] for raw in document.categories if isinstance(raw, dict) and type(raw.get("id")) is int]
    names = dict.fromkeys(given, None) | {c.id: c.name for c in categories}
    return names, {c.name: c.color for c in categories if c.color is not None}


def _read_images(file: Path, document: Document, problems: list[str]) -> list[Image]:
    """The images with their annotations; annotations that name none are added to `problems`."""
    images: list[Image] = []
    by_id: dict[int, list[Image]] = defaultdict(list)
    for number, raw in enumerate(document.images):
        own: list[str] = []
        name = raw.get("file_name") if isinstance(raw, dict) else None
        name = name if isinstance(name, str) else f"image {id_in_table(raw, number)}"
        entry = check(Entry, raw, f"{file}: image {id_in_table(raw, number)} ({brief(name)})", own)
        images.append(Image(name if entry is None else entry.file_name, entry, [], own))
        if isinstance(raw, dict) and type(raw.get("id")) is int:
            by_id[raw["id"]].append(images[-1])
    for given, several in by_id.items():
        if len(several) > 1:
            named = ", ".join(image.name for image in several[:4])
            text = (
                f"{file}: images: found the id {given} {len(several)} times ({named}); every image has its own: number "
                "them anew"
            )
            for image in several:
                image.problems.append(text)
    for number, raw in enumerate(document.annotations):
        image_id = raw.get("image_id") if isinstance(raw, dict) else None
        if type(image_id) is int and image_id in by_id:
            by_id[image_id][0].annotations.append((number, raw))
            continue
        where = f"{file}: annotation {id_in_table(raw, number)}"
        if check(
            Annotation if not isinstance(raw, dict) or "segments_info" not in raw else Panoptic,
            raw,
            where,
            problems,
        ):
            problems.append(
                f"{where}: image_id: found {image_id}; allowed are the ids of images; remove it, or add the image"
            )
    return images


def _check_annotation_ids(file: Path, images: Sequence[Image]) -> None:
    """Add a problem to every image of an annotation whose id another one has, too."""
    found = [
        (raw["id"], image)
        for image in images
        for _, raw in image.annotations
        if isinstance(raw, dict) and type(raw.get("id")) is int
    ]
    twice = set(repeated(annotation_id for annotation_id, _ in found))
    for annotation_id, image in found:
        if annotation_id in twice:
            image.problems.append(
                f"{file}: annotation {annotation_id} of {image.name}: its id is given to another one, too; every "
                "annotation has its own: number them anew"
            )


def _make_sample(
    file: Path, image: Image, folder: Path, allow_outside: bool, sources: tuple[Path, ...], draw: Any
) -> Sample:
    if image.entry is None:
        return Sample(image.name, folder, (file,), None, problems=(*image.problems,))
    stated = image.entry.width, image.entry.height
    return make_sample(file, image.name, folder, allow_outside, draw, image.problems, stated, sources)


def _add_arguments(what: argparse._ArgumentGroup) -> None:
    what.add_argument("source", type=Path, metavar="JSON", help="annotations of the training images")
    what.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="where the images lie")
    what.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="panoptic PNGs; default: beside the JSON, a folder of its name",
    )
    what.add_argument("--val", type=Path, metavar="JSON", help="that of the validation images")
    what.add_argument("--val-images", type=Path, metavar="FOLDER", help="where these lie; default: --images")
    what.add_argument("--val-masks", type=Path, metavar="FOLDER", help="as --masks, for --val")


COCO = Format(
    "COCO's JSON, instances or panoptic",
    "coco train.json --images photos/ --val val.json --output fruit --classes pear kiwi",
    _add_arguments,
    read,
)

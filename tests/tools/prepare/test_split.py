"""The split of a prepared folder, and what a rerun does with what is there already."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import folder
from tests.support.prepare import SQUARE, fails, labelme, read, shape, write_image, write_labelme
from tools.prepare.choice import split_samples
from tools.prepare.files import make_id
from tools.prepare.samples import Sample


@pytest.mark.parametrize("fraction", ["0", "1", "nan", "a tenth"])
def test_a_fraction_that_is_none_is_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], fraction: str
) -> None:
    assert fails(capsys, "labelme", "in", "--output", "out", "--val-fraction", fraction).endswith(
        f"error: argument --val-fraction: '{fraction}': give a number between 0 and 1, such as 0.1\n"
    )


@pytest.mark.parametrize(("train", "val"), [("in", "in/val"), ("in/train", "in")])
def test_what_lies_below_the_folder_of_the_other_split_or_the_output_is_in_one_split_only(
    tmp_path: Path, train: str, val: str
) -> None:
    for path in (f"{train}/a", f"{train}/deeper/b", f"{val}/v"):
        write_labelme(tmp_path / f"{path}.json", shape("pear", *SQUARE))
    output = tmp_path / "in" / "out" if val == "in" else tmp_path / "out"
    for _ in range(2):  # the second time, prepared.json lies in the output
        labelme(tmp_path / train, output, "--val", str(tmp_path / val))
        assert folder.open_split(output, "train").ids == ("a", "deeper_b")
        assert folder.open_split(output, "val").ids == ("v",)


def test_the_split_is_by_id_and_later_images_leave_the_others_where_they_are(tmp_path: Path) -> None:
    def splits() -> dict[str, str]:
        return {path.stem: path.parent.name for path in (tmp_path / "out").glob("masks/*/*.png")}

    for i in range(20):
        write_labelme(tmp_path / "in" / f"i{i}.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--val-fraction", "0.3", "--link")
    first = splits()
    assert list(first.values()).count("val") == 6
    image = tmp_path / "out" / "images" / first["i3"] / "i3.png"
    assert image.is_symlink()
    assert image.resolve() == tmp_path / "in" / "i3.png"
    for i in range(20, 30):
        write_labelme(tmp_path / "in" / f"i{i}.json", shape("pear", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--val-fraction", "0.3", "--link")
    assert len(splits()) == 30
    assert splits() | first == splits()
    assert list(splits().values()).count("val") == 9


@pytest.mark.parametrize(
    ("fraction", "num_images", "num_val"),
    [(0.2, 4, 1), (0.2, 10, 2), (0.25, 10, 3), (0.1, 2, 1), (0.9, 2, 1), (0.99, 10, 9), (0.5, 5, 3)],
)
def test_val_has_exactly_the_share_of_the_images(
    tmp_path: Path, fraction: float, num_images: int, num_val: int
) -> None:
    splits = split_samples({"train": samples(num_images)}, fraction, tmp_path)
    assert {split: len(found) for split, found in splits.items()} == {
        "train": num_images - num_val,
        "val": num_val,
    }
    by_hash = sorted((s.image_id for s in samples(num_images)), key=position)
    assert {s.image_id for s in splits["val"]} == {*by_hash[:num_val]}
    mixed = split_samples({"train": samples(num_images)[::-1]}, fraction, tmp_path)
    assert {s.image_id for s in mixed["val"]} == {*by_hash[:num_val]}


def test_images_that_are_there_stay_in_their_split_and_new_ones_fill_val_up_to_the_share(
    tmp_path: Path,
) -> None:
    by_hash = sorted((s.image_id for s in samples(10)), key=position)
    for split, image_id in (("train", by_hash[0]), ("val", by_hash[9]), ("val", "gone")):
        (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / split / f"{image_id}.png").touch()
    splits = split_samples({"train": samples(10)}, 0.3, tmp_path)
    assert {s.image_id for s in splits["val"]} == {by_hash[9], by_hash[1], by_hash[2]}
    assert split_samples({"train": samples(10)}, 0.1, tmp_path)["val"][0].image_id == by_hash[9]
    splits = split_samples({"train": [s for s in samples(10) if s.image_id in by_hash[8:]]}, 0.1, tmp_path)
    assert [s.image_id for s in splits["val"]] == [by_hash[9]]


def samples(count: int) -> list[Sample]:
    return [Sample(f"i{i}", Path(f"i{i}.png"), (), None) for i in range(count)]


def position(image_id: str) -> bytes:
    return hashlib.sha1(f"val/{image_id}".encode()).digest()


def test_a_rerun_does_what_is_missing_or_has_changed_and_nothing_else(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "abcd":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE))
    labelme(source, output)
    masks = {path.stem: path for path in output.glob("masks/*/*.png")}
    before = {name: path.stat().st_mtime_ns for name, path in masks.items()}
    masks["b"].unlink()
    write_labelme(source / "c.json", shape("pear", *SQUARE[:3]), image="c.png")
    os.utime(source / "c.json", ns=(before["c"] + 1, before["c"] + 1))
    labelme(source, output)
    after = {name: path.stat().st_mtime_ns for name, path in masks.items()}
    assert {name for name in masks if after[name] != before[name]} == {"b", "c"}
    assert read(output, "c").sum() < read(output, "b").sum() == 12


@pytest.mark.parametrize("more", [[], ["--link"]])
def test_a_source_that_changed_is_noticed_although_it_has_an_older_time(
    tmp_path: Path, more: list[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE))
    labelme(source, output, *more)
    write_labelme(source / "a.json", shape("pear", *SQUARE[:3]), image="a.png")
    write_image(source / "b.png", 9)
    write_labelme(source / "b.json", shape("pear", *SQUARE), image="b.png", imageWidth=9)
    for name in ("a.json", "b.json", "b.png"):
        os.utime(source / name, (1, 1))
    labelme(source, output, *more)
    assert [int(read(output, name).sum()) for name in "abc"] == [7, 12, 12]
    assert read(output, "b").shape == (6, 9)
    # The image alone, while its annotation is newer.
    Image.new("RGB", (8, 6), (1, 2, 3)).save(source / "c.png")
    os.utime(source / "c.png", (1, 1))
    labelme(source, output, *more)
    (image,) = output.glob("images/*/c.png")
    assert Image.open(image).getpixel((0, 0)) == (1, 2, 3)


def test_what_is_there_already_is_not_touched_unless_the_command_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE))
    (output / "images").mkdir(parents=True)
    told = fails(capsys, "labelme", source, "--output", output)
    assert f"{output}: is there already, and not from this command; choose another --output" in told
    (output / "images").rmdir()
    labelme(source, output)
    told = fails(capsys, "labelme", source, "--output", output, "--classes", "kiwi", "pear")
    assert "was prepared otherwise (classes: ['pear'] → ['kiwi', 'pear'], there → here)" in told
    stranger = output / "masks" / "train" / "z.png"
    stranger.touch()
    assert f"{stranger}: is none of these images (1 such files)" in fails(
        capsys, "labelme", source, "--output", output
    )


def test_a_label_that_is_new_is_refused_with_the_classes_that_let_the_command_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_labelme(source / f"{name}.json", shape("pear", *SQUARE), shape("red kiwi", *SQUARE[:3]))
    labelme(source, output)
    write_labelme(source / "c.json", shape("fig", *SQUARE), shape("red kiwi", *SQUARE[:3]))
    told = fails(capsys, "labelme", source, "--output", output)
    assert "(classes: ['pear', 'red kiwi'] → ['fig', 'pear', 'red kiwi'], there → here); keep to its" in told
    offered = re.search("`(.+)`, choose another --output, or delete it", told)
    assert offered is not None
    assert offered[1] == "--classes pear 'red kiwi'"
    labelme(source, output, *shlex.split(offered[1]))
    assert np.unique(read(output, "c")).tolist() == [0, 2]
    told = fails(capsys, "labelme", source, "--output", output, "--val-fraction", "0.3")
    assert "there → here); choose another --output" in told


def test_classes_that_no_image_shows_are_in_the_list_to_which_a_class_is_added(tmp_path: Path) -> None:
    for name in "ab":
        write_labelme(tmp_path / "in" / f"{name}.json", shape("fig", *SQUARE))
    labelme(tmp_path / "in", tmp_path / "out", "--classes", "pear", "kiwi", "fig")
    assert folder.open_split(tmp_path / "out", "train").classes == ("background", "pear", "kiwi", "fig")
    assert np.unique(read(tmp_path / "out", "a")).tolist() == [0, 3]


def test_an_image_id_is_one_name_wherever_the_image_lies() -> None:
    paths = ["a.png", "part/a.b.png", "/photos/a.png", "../photos/a.png"]
    assert [make_id(Path(path)) for path in paths] == ["a", "part_a.b", "photos_a", "photos_a"]

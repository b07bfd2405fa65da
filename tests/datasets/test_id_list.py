"""datasets/id_list.py: data.train_ids and data.val_ids take the images of a split that a list names."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets import DATASETS, class_index, folder
from datasets.class_index import index_classes
from datasets.file_dataset import FileDataset
from datasets.id_list import keep_listed
from tests.support.data import stripes, write_folder
from utils.errors import DataError

MASKS = {name: stripes(1 + i % 2) for i, name in enumerate("abcd")}


@pytest.fixture
def split(tmp_path: Path) -> FileDataset:
    """Four training images, a to d."""
    return folder.open_split(
        write_folder(tmp_path / "data", ["cat", "dog"], MASKS, {"v": stripes(1)}), "train"
    )


def write_list(folder: Path, text: str) -> Path:
    path = folder / "ids.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["c\na\n", "\n  c \n\n\na", "\ufeffc\r\na\r\n"])
def test_the_images_are_those_of_the_list_in_its_order_and_blank_lines_count_for_nothing(
    tmp_path: Path, split: FileDataset, text: str
) -> None:
    kept = keep_listed(split, write_list(tmp_path, text), "data.train_ids")
    assert kept.ids == ("c", "a")
    assert kept.samples["c"] == split.samples["c"]
    assert index_classes(kept, None, 0, progress=False) == {"c": {1}, "a": {1}}


def test_an_id_that_the_split_lacks_is_refused_with_file_id_and_what_is_allowed(
    tmp_path: Path, split: FileDataset
) -> None:
    path = write_list(tmp_path, "a\nv\n")  # v is a validation image
    with pytest.raises(DataError) as caught:
        keep_listed(split, path, "data.train_ids")
    assert str(caught.value) == (
        f"data.train_ids: {path}: the id 'v' is not in the train split of folder; allowed are its 4 ids (such as 'a')"
    )


def test_of_many_unknown_ids_ten_are_named(tmp_path: Path, split: FileDataset) -> None:
    path = write_list(tmp_path, "".join(f"x{i:02}\n" for i in range(13)))
    with pytest.raises(DataError, match=r"the ids 'x00', .* 'x09' and 3 more are not in the train split"):
        keep_listed(split, path, "data.train_ids")


def test_an_id_that_stands_twice_is_refused(tmp_path: Path, split: FileDataset) -> None:
    path = write_list(tmp_path, "a\nb\na\n")
    with pytest.raises(DataError, match=r"ids\.txt: the id 'a' is given more than once; list every id once"):
        keep_listed(split, path, "data.train_ids")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_list_of_no_id_is_refused(tmp_path: Path, split: FileDataset, text: str) -> None:
    with pytest.raises(DataError, match=r"data\.val_ids: .*ids\.txt: names no image"):
        keep_listed(split, write_list(tmp_path, text), "data.val_ids")


def test_a_list_that_is_not_there_or_not_utf_8_is_refused_by_name(tmp_path: Path, split: FileDataset) -> None:
    with pytest.raises(FileNotFoundError, match=r"^data\.train_ids: .*none\.txt: no such file"):
        keep_listed(split, tmp_path / "none.txt", "data.train_ids")
    (tmp_path / "ids.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"ids\.txt: not UTF-8"):
        keep_listed(split, tmp_path / "ids.txt", "data.train_ids")


def test_where_problems_are_collected_a_wrong_id_is_told_and_left_out(
    tmp_path: Path, split: FileDataset
) -> None:
    problems: list[str] = []
    kept = keep_listed(split, write_list(tmp_path, "b\nx\nb\na\n"), "data.train_ids", problems)
    assert kept.ids == ("b", "a")
    assert [problem.partition("ids.txt: ")[2].partition(";")[0] for problem in problems] == [
        "the id 'b' is given more than once",
        "the id 'x' is not in the train split of folder",
    ]


def test_each_split_is_restricted_by_its_own_field(tmp_path: Path, split: FileDataset) -> None:
    source, path = DATASETS["folder"], write_list(tmp_path, "d\nb\n")
    options = source.options(name="folder", root=tmp_path / "data").model_copy(update={"train_ids": path})
    assert source.open(options, "train", None).ids == ("d", "b")
    assert source.open(options, "val", None).ids == ("v",)
    options = options.model_copy(update={"train_ids": None, "val_ids": path})
    assert source.open(options, "train", None).ids == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"^data\.val_ids: .*'d', 'b' are not in the val split of folder"):
        source.open(options, "val", None)


def test_a_part_of_a_split_reads_from_its_cache_and_leaves_the_other_entries(
    tmp_path: Path, split: FileDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = keep_listed(split, write_list(tmp_path, "c\na\n"), "data.train_ids")
    cache = tmp_path / "cache"
    assert list(index_classes(part, cache, 0, progress=False)) == ["c", "a"]
    whole = index_classes(split, cache, 0, progress=False)

    def fail(job: class_index.MaskJob) -> list[int]:
        raise AssertionError(f"{job.mask_path} was read again")

    monkeypatch.setattr(class_index, "_read_mask", fail)
    assert index_classes(part, cache, 0, progress=False) == {i: whole[i] for i in "ca"}
    assert index_classes(split, cache, 0, progress=False) == whole
    assert len(list(cache.iterdir())) == 1


def test_a_folder_in_place_of_a_list_is_refused_with_its_field(tmp_path: Path, split: FileDataset) -> None:
    with pytest.raises(DataError, match=rf"^data\.val_ids: {tmp_path}: is a folder; give a text file$"):
        keep_listed(split, tmp_path, "data.val_ids")


def test_ids_that_stand_twice_and_unknown_ones_are_told_together_and_what_an_id_is(
    tmp_path: Path, split: FileDataset
) -> None:
    with pytest.raises(DataError) as caught:
        keep_listed(split, write_list(tmp_path, "a\na\nimages/train/b.jpg\n"), "data.train_ids")
    twice, unknown = str(caught.value).splitlines()
    assert "the id 'a' is given more than once" in twice
    assert unknown.endswith("an id is the name of a file without folder and suffix")

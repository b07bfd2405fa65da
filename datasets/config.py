"""Options that data sets share, as sections of the config."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from utils.config.section import NamedSection


class DataConfig(NamedSection):
    """What every data set takes; one with options of its own adds them in a subclass."""

    moved: ClassVar = {
        "shapes": "its fields stand in data itself now, as data: {name: shapes, num_train: 600, image_size: 96}"
    }
    root: Path = Path("data_root")
    """Folder that holds VOCdevkit/, ADEChallengeData2016/, leftImg8bit/ and gtFine/ (`cityscapes`), or images/, masks/
    and classes.txt (`folder`)."""
    num_workers: int = Field(4, ge=0, le=1024)
    """Processes that read images, a rank."""
    train_on: Literal["step", "seen"] = "step"
    """Images and labels a step learns from: its own classes', or those of every class so far (`joint`)."""
    image_lists: Path | None = None
    """Folder with lists of every step's training images, in a format that others publish; null selects them as
    `setting` says."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image or mask that cannot be read ends the run, or is left out (in training: replaced by the step's next
    image), counted and named."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Share of a split's or a step's images that `skip` may leave out before the run ends."""


class FilesConfig(DataConfig):
    """What data sets in files take beyond that."""

    long_side: int | None = Field(None, ge=1)
    """Largest longer side of an image, in pixels: larger ones, and their masks, are reduced to it on reading, in
    validation, too; null reads them as they are."""
    train_ids: Path | None = None
    """Text file with the ids of the training images to use, one a line; null uses all of the data set's training
    split."""
    val_ids: Path | None = None
    """The same for the validation images."""
    saliency: Path | None = None
    """Folder of masks ID.png, other than 0 where an image is salient, for each training image: what SSUL's unknown
    class is shown by; null has none."""

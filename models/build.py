"""A model by its section of the config."""

from models.base import ModelOptions, SegmentationModel
from models.deeplabv3 import DeepLabV3
from models.segmenter import Segmenter

MODELS: dict[str, type[SegmentationModel]] = {"deeplabv3": DeepLabV3, "segmenter": Segmenter}


def build_model(options: ModelOptions, num_classes: list[int], image_size: int) -> SegmentationModel:
    """Return the model that a section of the config describes.

    num_classes: classes of each step so far, background counted in the first; image_size: side of the training crop,
    in pixels. Raises ValueError naming the field whose value the model cannot take.
    """
    return MODELS[options.name](num_classes, options, image_size)

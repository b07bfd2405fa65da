"""Segmentation models behind one interface: `build_model`, and `load_model` from a checkpoint."""

from models.base import ModelOptions, SegmentationModel
from models.build import MODELS, build_model
from models.deeplabv3 import DeepLabV3
from models.output import SegOutput
from models.saved import ModelInfo, load_model
from models.segmenter import Segmenter

__all__ = [
    "MODELS",
    "DeepLabV3",
    "ModelInfo",
    "ModelOptions",
    "SegOutput",
    "SegmentationModel",
    "Segmenter",
    "build_model",
    "load_model",
]

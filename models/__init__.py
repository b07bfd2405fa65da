"""Segmentation models behind one interface: `build_model`."""

from models.deeplabv3 import DeepLabV3
from models.output import SegOutput

MODELS = {"deeplabv3": DeepLabV3}

__all__ = ["MODELS", "DeepLabV3", "SegOutput", "build_model"]


def build_model(name: str, num_classes: list[int], **options: object) -> DeepLabV3:
    """Return the model `name` (a key of MODELS) for the classes of each step so far."""
    return MODELS[name](num_classes, **options)  # type: ignore[arg-type]

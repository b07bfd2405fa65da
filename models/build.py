"""A model by its name and options."""

from models.base import SegmentationModel
from models.deeplabv3 import DeepLabV3
from models.segmenter import Segmenter

MODELS: dict[str, type[SegmentationModel]] = {"deeplabv3": DeepLabV3, "segmenter": Segmenter}


def build_model(
    name: str,
    num_classes: list[int],
    *,
    backbone: str,
    pretrained: bool | str,
    channels: int,
    image_size: int,
    output_stride: int,
    patch_size: int | None,
    num_blocks: int,
    num_heads: int,
    drop_path: float,
    auxiliary_classifier: bool = False,
) -> SegmentationModel:
    """Return the model `name` (a key of MODELS) for the classes of each step so far; each takes its own options.

    auxiliary_classifier: has a default, as checkpoints older than this option do not name it.
    Raises ValueError naming the field of the config whose value the model cannot take.
    """
    if name == "segmenter":
        return Segmenter(
            num_classes,
            backbone=backbone,
            pretrained=pretrained,
            image_size=image_size,
            patch_size=patch_size,
            channels=channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
            drop_path=drop_path,
        )
    return DeepLabV3(
        num_classes,
        backbone=backbone,
        pretrained=pretrained,
        output_stride=output_stride,
        channels=channels,
        auxiliary_classifier=auxiliary_classifier,
    )

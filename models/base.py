"""What the trainer asks of a model."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.backbone import pixel_statistics
from models.output import SegOutput, most_likely, upsample


class SegmentationModel(nn.Module):
    """A network whose classes grow; forward takes images (B,3,H,W), RGB pixel values 0..255 of any dtype.

    backbone: the timm model whose mean and standard deviation normalise the images, here, where the model is.
    A model keeps its backbone and the parameters of its classes in submodules named `backbone` and `classifier`.
    """

    trains_on_single_images: ClassVar[bool]
    """Whether a training batch may hold one image only (BatchNorm on pooled features needs two)."""
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__()
        mean, std = pixel_statistics(backbone)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1))
        self.register_buffer("pixel_std", std.view(3, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """Return images as the backbone wants them, in floating point."""
        return (images - self.pixel_mean) / self.pixel_std

    def to_image_size(self, grid_logits: Tensor, size: torch.Size) -> Tensor:
        """Bring logits (B,K,h,w) of this model's grid to the size (H,W) of the images they came from."""
        return upsample(grid_logits, size)

    def most_likely(self, grid_logits: Tensor, size: torch.Size) -> Tensor:
        """Return the largest class (B,H,W) of `to_image_size`, without all logits at that size."""
        return most_likely(grid_logits, size)

    @property
    def num_classes(self) -> list[int]:
        """Classes of each step so far, background counted in the first."""
        raise NotImplementedError

    def grow(self, num_new: int, weight_transfer: bool, balanced_bias: bool = False) -> None:
        """Add the classes of a new step.

        weight_transfer: they start as the background. balanced_bias: background and new classes share what the
        background scored, their biases lowered by log(1 + new classes) (MiB, arXiv 2002.00718, eq. 10).
        Where the model has an auxiliary classifier, they start as that instead.
        """
        raise NotImplementedError

    def set_auxiliary_classifier(self, is_wanted: bool) -> None:
        """Give a model whose kind can have one an auxiliary classifier, a copy of the background's, or take it away."""
        raise NotImplementedError

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained at the backbone's learning rate."""
        return list(self.get_submodule("backbone").parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classes themselves."""
        return list(self.get_submodule("classifier").parameters())

    def newest_parameters(self) -> list[nn.Parameter]:
        """Return those of them that belong to the newest step's classes."""
        raise NotImplementedError

    def forward(self, images: Tensor, with_stages: bool = False, full_size: bool = True) -> SegOutput:
        """with_stages: fill `SegOutput.stages`, where the backbone has stages. full_size: fill its logits."""
        raise NotImplementedError

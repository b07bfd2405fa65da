"""What the trainer asks of a model."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from models.backbone import IMAGENET_MEAN, IMAGENET_STD, pixel_statistics
from models.closed_form import ClosedFormClassifier, join_maps
from models.output import SegOutput, most_likely, upsample
from utils.config.section import NamedSection
from utils.upsampling import Upsampled, upsampled

Start = Literal["random", "background", "shared_background", "unknown"]
"""As what new classes start: anew, as copies of the background's classifier, as copies that share with it what the
background scored, biases lowered by log(1 + new classes) (MiB, arXiv 2002.00718, eq. 10), or as copies of the unknown
class's, where the model has one (SSUL, arXiv 2106.11562)."""

Stages = bool | Literal["activated"]
"""Whether the maps of a backbone's stages are wanted, and whether before or behind the activation that ends each."""

MAX_CHANNELS = 2**14


class ModelOptions(NamedSection):
    """What every model can be told."""

    moved: ClassVar = {
        "auxiliary_classifier": "leave it out: method dkd brings its auxiliary classifier along"
    }
    backbone: str = "resnet101"
    """Name of the backbone in timm."""
    pretrained: bool | str = True
    """ImageNet weights of the backbone: true fetches timm's, a path reads a state dict (of timm, torchvision, MiB's
    in-place ABN or the authors' Segmenter), false starts at random."""
    normalisation: Literal["backbone", "imagenet"] = "backbone"
    """Mean and standard deviation that images are brought to: those of the backbone in timm, or ImageNet's, which
    differ for ViTs."""
    channels: int = Field(256, ge=1, le=MAX_CHANNELS)
    """Channels of the features that are distilled."""

    @field_validator("pretrained")
    @classmethod
    def _home_is_expanded(cls, value: bool | str) -> bool | str:
        return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 - may be no path


class SegmentationModel(nn.Module):
    """A network whose classes grow; forward takes images (B,3,H,W), RGB pixel values 0..255 of any dtype.

    A model is made of the classes of each step so far (background counted in the first), its section of the config,
    and the side of the training crop in pixels. It keeps its backbone and the parameters of its classes in submodules
    named `backbone` and `classifier`. Images are normalised here, where the model is.
    """

    Options: ClassVar[type[ModelOptions]]
    """The model's section of the config."""

    trains_on_single_images: ClassVar[bool]
    """Whether a training batch may hold one image only (BatchNorm on pooled features needs two)."""
    has_stages: ClassVar[bool] = False
    """Whether forward can return the feature maps of the backbone's stages."""
    has_linear_classifier: ClassVar[bool] = False
    """Whether a class is a row of a 1x1 classifier over the features."""
    maps: ClassVar[tuple[str, ...]] = ()
    """Names of the maps by which `describe` can describe a cell."""
    cell: int = 1
    """Side of the grid's cells in pixels where images are padded to whole cells, at the right and the bottom with the
    mean colour, and their logits cropped; 1 where images are taken as they are."""
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, num_classes: list[int], options: Any, image_size: int = 512) -> None:
        super().__init__()
        self.options = options
        self.closed_form: ClosedFormClassifier | None = None
        mean, std = pixel_statistics(options.backbone)
        if options.normalisation == "imagenet":
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        self.register_buffer("pixel_mean", mean.view(3, 1, 1))
        self.register_buffer("pixel_std", std.view(3, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """Return images as `normalisation` wants them, in floating point."""
        return (images - self.pixel_mean) / self.pixel_std

    def pad_to_cells(self, x: Tensor) -> Tensor:
        """Return normalised images (B,3,H,W) padded to whole cells: their mean colour is 0."""
        if self.cell == 1:
            return x
        # Whole numbers all the way: torch.export follows them where sizes are dynamic, and loses track of a ceil.
        height, width = ((side + self.cell - 1) // self.cell * self.cell - side for side in x.shape[2:])
        return F.pad(x, (0, width, 0, height))

    def to_image_size(self, grid_logits: Tensor, size: torch.Size) -> Tensor:
        """Bring logits (B,K,h,w) of this model's grid to the size (H,W) of the images they came from."""
        if self.cell == 1:
            return upsample(grid_logits, size)
        logits = upsample(grid_logits, self._padded(grid_logits))
        if torch.compiler.is_exporting():
            # Whether a slice is contiguous depends on the size, and an exported program would hold to what it has seen.
            for dim, side in enumerate(size, start=2):
                logits = logits.index_select(dim, torch.arange(side, device=logits.device))
            return logits
        return logits[:, :, : size[0], : size[1]]

    def upsampled(self, grid_logits: Tensor, size: torch.Size) -> Tensor | Upsampled:
        """Return `to_image_size`, computed where it is read if what the model does there can be."""
        pixels = upsampled(grid_logits, size if self.cell == 1 else self._padded(grid_logits))
        return pixels._replace(size=(size[0], size[1]))

    def most_likely(self, grid_logits: Tensor, size: torch.Size) -> Tensor:
        """Return the largest class (B,H,W) of `to_image_size`, without all logits at that size."""
        if self.cell == 1:
            return most_likely(grid_logits, size)
        return most_likely(grid_logits, self._padded(grid_logits))[:, : size[0], : size[1]]

    def _padded(self, grid_logits: Tensor) -> torch.Size:
        """Size (H,W) of a grid's cells, those that the image was padded for among them."""
        return torch.Size(side * self.cell for side in grid_logits.shape[2:])

    @property
    def num_classes(self) -> list[int]:
        """Classes of each step so far, background counted in the first."""
        raise NotImplementedError

    def grow(self, num_new: int, start: Start = "random") -> None:
        """Add the classes of a new step, which start as `start` says."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Return the grid's logits (B,K,h,w), float32 at least, of features (B,D,h,w) that no image need have given.

        Models that decode classes per image cannot.
        """
        raise NotImplementedError

    def describe(self, images: Tensor, described_by: Sequence[str]) -> Tensor:
        """Return what each cell is described by (B,F,h,w): names of `maps` and of `models.closed_form.CONTEXTS`.

        images: (B,3,H,W), as forward takes them.
        """
        return join_maps(self.named_maps(images, described_by), described_by)

    def named_maps(self, images: Tensor, names: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """Return the maps (B,C,h,w) of these names, on the grid; parts of the network that none needs may rest."""
        raise NotImplementedError

    def solve_classes(
        self, described_by: Sequence[str], weight: Tensor, bias: Tensor, expansion: Tensor | None = None
    ) -> None:
        """Let a solved classifier score all classes from now on; see `ClosedFormClassifier`."""
        solved = ClosedFormClassifier(described_by, weight, bias, expansion)
        self.closed_form = solved.to(self.pixel_mean.device)

    def solved_output(self, images: Tensor, full_size: bool) -> SegOutput:
        """Return what a solved model says: its features are the descriptions, its class tokens the solved weights."""
        assert self.closed_form is not None
        description = self.describe(images, self.closed_form.described_by)
        grid_logits = self.closed_form(description)
        logits = self.to_image_size(grid_logits, images.shape[2:]) if full_size else None
        return SegOutput(logits, grid_logits, description, self.closed_form.weight, None)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained at the backbone's learning rate."""
        return list(self.get_submodule("backbone").parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classes themselves."""
        return list(self.get_submodule("classifier").parameters())

    def newest_parameters(self) -> list[nn.Parameter]:
        """Return those of them that belong to the newest step's classes, and to the unknown class."""
        raise NotImplementedError

    def background_parameters(self) -> list[nn.Parameter]:
        """Return those of them that belong to the background alone; none where it shares a tensor with classes."""
        return []

    def forward(self, images: Tensor, with_stages: Stages = False, full_size: bool = True) -> SegOutput:
        """with_stages: fill `SegOutput.stages`, where the backbone has them. full_size: fill its logits."""
        raise NotImplementedError

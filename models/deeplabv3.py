"""DeepLabV3 (Chen et al., arXiv 1706.05587) over any timm backbone, with a classifier that grows."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.backbone import build_backbone, feature_maps, watch_stage_ends
from models.base import MAX_CHANNELS, ModelOptions, SegmentationModel, Stages, Start
from models.classifier import GrowingClassifier, OwnHeads, join_unknown
from models.closed_form import pool_to_grid
from models.compensation import compensate_bottlenecks, compensate_sequence
from models.output import SegOutput
from models.residual_background import ResidualBackground, join_outputs
from utils.upsampling import Upsampled


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size of its input, BatchNorm, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and image pooling, concatenated.

    (B,C,h,w) -> (B, 5 · channels, h, w).
    """

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(in_channels, channels, 1)]
            + [conv_bn_relu(in_channels, channels, 3, dilation=rate) for rate in rates]
        )
        self.image_pooling = conv_bn_relu(in_channels, channels, 1)
        self.out_channels = channels * (len(self.branches) + 1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image_pooling(x.mean(dim=(2, 3), keepdim=True))
        return torch.cat(
            [*(branch(x) for branch in self.branches), image.expand(-1, -1, *x.shape[2:])], dim=1
        )


class DeepLabV3(SegmentationModel):
    """Backbone, ASPP, shared conv-BN-ReLUs (which give the distilled features), one 1x1 classifier a step.

    The authors' code of MBS holds no DeepLabV3; the mapping of its parts onto this model is ours: features
    are the output of the last shared convolution, class tokens are the classifier's rows.
    """

    class Options(ModelOptions):
        """DeepLabV3's section of the config."""

        backbone: str = "resnet101"
        """Any timm model with feature maps at the output stride (`docs/backbones.md`)."""
        output_stride: Literal[8, 16, 32] = 16
        """Image size over feature grid size: what a convolutional network is dilated to; 32 for a Swin."""
        channels: int = Field(256, ge=1, le=MAX_CHANNELS)
        """Channels of the distilled features and of each ASPP branch."""
        head: Literal["3x3", "1x1+3x3", "1x1"] = "3x3"
        """Convolutions from ASPP's maps to the features: a 3x3, one behind a 1x1 (torchvision, SSUL, DKD), or a 1x1
        alone (MiB, PLOP)."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout of the maps that the last of these convolutions sees (0.1 in SSUL and DKD); of the features, where
        `classifier` has heads."""
        classifier: Literal["rows", "heads", "heads+unknown"] = "rows"
        """What scores the classes: rows of a 1x1; a head of a 3x3, BatchNorm, ReLU and 1x1 for each step's classes and
        for the background (SSUL; behind head 1x1, as released); or these and one of an unknown class, whose score
        joins the background's in prediction."""
        compensation: bool = False
        """Two branches for the 3x3 convolutions of a ResNet's bottlenecks and for those of ASPP (RCIL). With each new
        step one of them becomes the average of both, and remembers."""
        branch_drop: float = Field(0.66, ge=0, le=1)
        """Share of a layer's channels for which a training pass takes one of the two branches alone, by chance."""
        background_residuals: Literal["none", "rows", "ears"] = "none"
        """What each incremental step adds to lower the background's score (BARM): a row on the shared features, or one
        on an ear, a copy of the last of these convolutions, by which its classes are scored too."""

    trains_on_single_images = False
    has_stages = True
    has_linear_classifier = True
    maps = ("backbone", "stages", "aspp", "head")

    def __init__(self, num_classes: list[int], options: Options, image_size: int = 512) -> None:
        super().__init__(num_classes, options, image_size)
        self.backbone, self.strides, in_channels, self.cell = build_backbone(
            options.backbone, options.pretrained, options.output_stride
        )
        self.stage_ends = watch_stage_ends(self.backbone)
        if options.compensation:
            compensate_bottlenecks(self.backbone, options.backbone, options.branch_drop)
        rates = tuple(rate * 16 // options.output_stride for rate in (6, 12, 18))
        self.aspp = ASPP(in_channels, options.channels, rates)
        if options.compensation:
            for branch in self.aspp.branches:
                assert isinstance(branch, nn.Sequential)
                compensate_sequence(branch, options.branch_drop)
        channels = self.aspp.out_channels
        self.reduce: nn.Module = nn.Identity()
        if options.head == "1x1+3x3":
            self.reduce = conv_bn_relu(channels, options.channels, 1)
            channels = options.channels
        has_rows = options.classifier == "rows"
        self.dropout = nn.Dropout(options.dropout if has_rows else 0.0)
        self.project = conv_bn_relu(channels, options.channels, 1 if options.head == "1x1" else 3)
        self.has_unknown = options.classifier == "heads+unknown"
        self.classifier: GrowingClassifier | OwnHeads = (
            GrowingClassifier(options.channels, num_classes)
            if has_rows
            else OwnHeads(options.channels, num_classes, self.has_unknown, options.dropout)
        )
        self.residual_background: ResidualBackground | None = None
        if options.background_residuals != "none":
            has_ears = options.background_residuals == "ears"
            self.residual_background = ResidualBackground(options.channels, has_ears)
            for _ in num_classes[1:]:
                self.residual_background.grow(self.project)

    @property
    def num_classes(self) -> list[int]:
        return self.classifier.num_classes

    def grow(self, num_new: int, start: Start = "random") -> None:
        self.classifier.grow(num_new, start)
        if self.residual_background is not None:
            self.residual_background.grow(self.project)

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features)
        # Under autocast the classifier answers in half precision; what is softmaxed is upsampled in float32.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def newest_parameters(self) -> list[nn.Parameter]:
        newest = list(self.classifier.heads[-1].parameters())
        if self.residual_background is not None:
            newest += self.residual_background.newest_parameters()
        unknown = self.classifier.unknown if isinstance(self.classifier, OwnHeads) else None
        return newest if unknown is None else [*newest, *unknown.parameters()]

    def classifier_parameters(self) -> list[nn.Parameter]:
        added = self.residual_background
        modules = [*added.rows, *added.newest_ear()] if added else []
        return super().classifier_parameters() + [p for module in modules for p in module.parameters()]

    def background_parameters(self) -> list[nn.Parameter]:
        if not isinstance(self.classifier, OwnHeads):
            return []
        return list(self.classifier.background.parameters())

    def to_image_size(self, grid_logits: Tensor, size: torch.Size) -> Tensor:
        logits = super().to_image_size(grid_logits, size)
        return join_unknown(logits) if self.has_unknown else logits

    def upsampled(self, grid_logits: Tensor, size: torch.Size) -> Tensor | Upsampled:
        # Two joined scores are not an upsampled one.
        return (
            self.to_image_size(grid_logits, size)
            if self.has_unknown
            else super().upsampled(grid_logits, size)
        )

    def most_likely(self, grid_logits: Tensor, size: torch.Size) -> Tensor:
        if self.has_unknown:
            return self.to_image_size(grid_logits, size).argmax(dim=1)
        return super().most_likely(grid_logits, size)

    def forward(self, images: Tensor, with_stages: Stages = False, full_size: bool = True) -> SegOutput:
        if self.closed_form is not None:
            return self.solved_output(images, full_size)
        for end in filter(None, self.stage_ends):
            end.keeps = with_stages is True
        stages = self._stages(images)
        pyramid = self.dropout(self.reduce(self.aspp(stages[-1])))
        features = self.project(pyramid)
        ears: tuple[Tensor, ...] = ()
        outputs: tuple[Tensor, ...] = ()
        if self.residual_background is not None:
            ears, outputs = self.residual_background(pyramid, features, self.classifier.heads)
            grid_logits = join_outputs(outputs)
        else:
            grid_logits = self.classify(features)
        logits = self.to_image_size(grid_logits, images.shape[2:]) if full_size else None
        ends = zip(stages, self.stage_ends, strict=True) if with_stages else ()
        kept = tuple(end.take() if end and with_stages is True else stage for stage, end in ends)
        tokens = self.classifier.class_tokens()
        return SegOutput(logits, grid_logits, features, tokens, None, kept, stages[-1], ears, outputs)

    def named_maps(self, images: Tensor, names: Sequence[str]) -> dict[str, Sequence[Tensor]]:
        """'stages' are all of the backbone's but the last one, which is 'backbone'."""
        stages = self._stages(images)
        grid = stages[-1].shape[2], stages[-1].shape[3]
        finer = [
            pool_to_grid(stage, self.strides[-1] // stride, grid)
            for stage, stride in zip(stages[:-1], self.strides[:-1], strict=True)
        ]
        maps: dict[str, Sequence[Tensor]] = {"backbone": stages[-1:], "stages": finer}
        if "aspp" in names or "head" in names:
            pyramid = self.aspp(stages[-1])
            maps |= {"aspp": [pyramid], "head": [self.project(self.dropout(self.reduce(pyramid)))]}
        return maps

    def _stages(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's feature maps (B,C,h,w), fine to coarse."""
        return feature_maps(self.backbone, self.pad_to_cells(self.normalise(images)))

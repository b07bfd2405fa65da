"""DeepLabV3 (Chen et al., arXiv 1706.05587) over any timm backbone, with a classifier that grows."""

import torch
from torch import Tensor, nn

from models.backbone import build_backbone
from models.base import SegmentationModel
from models.classifier import GrowingClassifier
from models.output import SegOutput


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
    """Backbone, ASPP, one shared 3x3 conv-BN-ReLU (the distilled features), one 1x1 classifier a step.

    The authors' code of MBS holds no DeepLabV3; the mapping of its parts onto this model is ours: features
    are the output of the shared 3x3, class tokens are the classifier's rows.

    num_classes: classes of each step so far, background counted in the first. auxiliary_classifier: see
    `GrowingClassifier`.
    """

    trains_on_single_images = False

    def __init__(
        self,
        num_classes: list[int],
        *,
        backbone: str = "resnet101",
        pretrained: bool | str = False,
        output_stride: int = 16,
        channels: int = 256,
        auxiliary_classifier: bool = False,
    ) -> None:
        super().__init__(backbone)
        self.backbone, in_channels = build_backbone(backbone, pretrained, output_stride)
        rates = tuple(rate * 16 // output_stride for rate in (6, 12, 18))
        self.aspp = ASPP(in_channels, channels, rates)
        self.project = conv_bn_relu(self.aspp.out_channels, channels, 3)
        self.classifier = GrowingClassifier(channels, num_classes, auxiliary_classifier)

    @property
    def num_classes(self) -> list[int]:
        return self.classifier.num_classes

    def grow(self, num_new: int, weight_transfer: bool, balanced_bias: bool = False) -> None:
        self.classifier.grow(num_new, weight_transfer, balanced_bias)

    def set_auxiliary_classifier(self, is_wanted: bool) -> None:
        self.classifier.set_auxiliary(is_wanted)

    def newest_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.heads[-1].parameters())

    def forward(self, images: Tensor, with_stages: bool = False, full_size: bool = True) -> SegOutput:
        stages = self.backbone(self.normalise(images))
        features = self.project(self.aspp(stages[-1]))
        grid_logits = self.classifier(features)
        # Under autocast the classifier answers in half precision; what is softmaxed is upsampled in float32.
        grid_logits = grid_logits.to(torch.promote_types(grid_logits.dtype, torch.float32))
        size = images.shape[2:]
        logits = self.to_image_size(grid_logits, size) if full_size else grid_logits.new_empty(0)
        kept = tuple(stages) if with_stages else ()
        auxiliary_logits = self.classifier.auxiliary_logits(features)
        class_tokens = self.classifier.class_tokens()
        return SegOutput(logits, grid_logits, features, class_tokens, None, kept, auxiliary_logits)

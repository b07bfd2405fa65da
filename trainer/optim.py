"""Parameter groups, optimiser and learning rate schedule of a step."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from models import DeepLabV3
from utils.config import TrainConfig


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep BatchNorm as it is: running statistics used but not updated, affine parameters not trained."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


def build_optimizer(model: DeepLabV3, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """Optimise the backbone at `lr` and everything behind it at `lr` · lr_head_factor."""
    backbone = [p for p in model.backbone_parameters() if p.requires_grad]
    in_backbone = {id(p) for p in model.backbone_parameters()}
    heads = [p for p in model.parameters() if p.requires_grad and id(p) not in in_backbone]
    groups = [{"params": backbone, "lr": lr}, {"params": heads, "lr": lr * config.lr_head_factor}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(config.momentum, 0.999), weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
    )


def build_schedule(optimizer: torch.optim.Optimizer, schedule: str, num_iterations: int) -> LambdaLR:
    """Change the learning rates once an iteration: poly (power 0.9), cosine (both to 0) or constant."""

    def factor(iteration: int) -> float:
        remaining = max(0.0, 1 - iteration / num_iterations)
        if schedule == "poly":
            return float(remaining**0.9)
        if schedule == "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * remaining)
        return 1.0

    return LambdaLR(optimizer, factor)

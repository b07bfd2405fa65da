"""Parameter groups, optimiser and learning rate schedule of a step."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.network import Network
from trainer.sections import TrainConfig


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep BatchNorm as it is: running statistics used but not updated, affine parameters not trained."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


def build_optimizer(network: Network, config: TrainConfig, is_base_step: bool) -> torch.optim.Optimizer:
    """Return the optimiser of a step, with learning rates for the backbone, the classifier and all between them.

    The method's own modules learn at the classifier's.
    """
    model = network.model
    lr = config.lr_base if is_base_step else config.lr_incremental
    lr_heads = lr_classifier = lr * config.lr_head_factor
    if not is_base_step and config.lr_classifier_incremental is not None:
        lr_classifier = config.lr_classifier_incremental
    backbone = model.backbone_parameters()
    background = [] if is_base_step else model.background_parameters()
    own = {id(p) for p in background}
    classifier = [
        p for p in (*model.classifier_parameters(), *network.parts.parameters()) if id(p) not in own
    ]
    elsewhere = {id(p) for p in backbone + classifier + background}
    heads = [p for p in model.parameters() if id(p) not in elsewhere]
    rates = [(backbone, lr), (heads, lr_heads), (classifier, lr_classifier)]
    rates += [(background, lr_classifier * config.lr_background_factor)] if background else []
    only = config.weight_decay_on == "new_classes" and not is_base_step
    decaying = {id(p) for p in (model.newest_parameters() if only else network.parameters())}
    groups = [
        {
            "params": [p for p in parameters if p.requires_grad and (id(p) in decaying) is decays],
            "lr": group_lr,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for parameters, group_lr in rates
        for decays in ((True, False) if only else (True,))
    ]
    # One kernel for all weights, on GPUs. None is PyTorch's own choice.
    fused = True if all(p.is_cuda for p in model.parameters()) else None
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(config.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


WARMUP_START = 1e-3
"""Factor on the learning rate of the first iteration of a warm-up (SSUL, DKD)."""


def build_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, num_iterations: int, warmup: float = 0.0
) -> LambdaLR:
    """Change the learning rates once an iteration: poly (power 0.9), cosine (both to 0) or constant.

    warmup: share of the iterations over which a factor rises linearly to 1; it multiplies the schedule.
    """

    def decay(iteration: int) -> float:
        remaining = max(0.0, 1 - iteration / num_iterations)
        if schedule == "poly":
            return float(remaining**0.9)
        if schedule == "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * remaining)
        return 1.0

    def factor(iteration: int) -> float:
        risen = 1.0 if warmup == 0 else min(1.0, iteration / (warmup * num_iterations))
        return decay(iteration) * (WARMUP_START + (1 - WARMUP_START) * risen if risen < 1 else 1.0)

    return LambdaLR(optimizer, factor)

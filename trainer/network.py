"""What a step trains: the model and, beside it, the method's own modules."""

from typing import Any

from torch import nn

from methods import METHODS, Method, method_of_step
from models import SegmentationModel, SegOutput
from trainer.checkpoint import load_checkpoint, restore_model
from trainer.config import Config
from trainer.shared_base import base_file


class Network(nn.Module):
    """A model and a method's `parts`, trained, wrapped and saved together; called as the model is."""

    def __init__(self, model: SegmentationModel, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.model = model
        self.parts = parts

    def forward(self, *args: Any, **options: Any) -> SegOutput:
        output: SegOutput = self.model(*args, **options)
        return output


def make_parts(method: Method, config: Config) -> nn.ModuleDict:
    """Return the method's own modules, as they start."""
    return nn.ModuleDict(method.parts(config.model.channels))


def network_of_base(config: Config, num_future: int = 0) -> Network:
    """Return the network of the checkpoint that `init_from` names, with the method's modules as far as it has them.

    num_future: classes of later steps.
    """
    assert config.init_from is not None
    base = load_checkpoint(base_file(config.init_from))
    network = new_network(config, restore_model(config, base), num_future)
    if (
        METHODS[base["config"]["method"]["name"]].base_step is METHODS[config.method.name].base_step
        and base["parts"]
    ):
        network.parts.load_state_dict(base["parts"])
    return network


def new_network(config: Config, model: SegmentationModel, num_future: int = 0) -> Network:
    """Return the network of a base step that trains `model`; num_future: classes of later steps."""
    method = method_of_step(config.method, 0, sum(model.num_classes), num_future)
    return Network(model, make_parts(method, config))

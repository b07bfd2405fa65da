"""Class-incremental methods, a file a paper; `METHODS` is the only list of them."""

from methods.barm import BARM
from methods.base import Method, Output, Targets, Term, means
from methods.dft import DFT
from methods.dkd import DKD
from methods.ewf import EWF
from methods.finetune import Finetune, Joint
from methods.lwf import ILT, LwF
from methods.mbs import MBS
from methods.mib import MiB
from methods.nest import NeST
from methods.plop import PLOP
from methods.rcil import RCIL
from methods.ridge import Ridge
from methods.segacil import SegACIL
from methods.ssul import SSUL
from methods.star import STAR
from methods.ucb import MBSUCB, PLOPUCB, SSULUCB

METHODS: dict[str, type[Method]] = {
    "mbs": MBS,
    "finetune": Finetune,
    "joint": Joint,
    "lwf": LwF,
    "ilt": ILT,
    "mib": MiB,
    "plop": PLOP,
    "ssul": SSUL,
    "dkd": DKD,
    "ewf": EWF,
    "nest": NeST,
    "star": STAR,
    "barm": BARM,
    "mbs_ucb": MBSUCB,
    "plop_ucb": PLOPUCB,
    "ssul_ucb": SSULUCB,
    "rcil": RCIL,
    "dft": DFT,
    "ridge": Ridge,
    "segacil": SegACIL,
}

__all__ = ["METHODS", "Method", "Output", "Targets", "Term", "means", "method_of_step"]


def method_of_step(options: Method.Options, num_old: int, num_new: int, num_future: int = 0) -> Method:
    """Return the configured method for a step; in the base step (num_old is 0) what trains it there."""
    method = METHODS[options.name]
    return (method if num_old else method.base_step)(options, num_old, num_new, num_future)

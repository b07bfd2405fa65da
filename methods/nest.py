"""NeST (ECCV 2024, arXiv 2407.14142) on MiB: new classes start as tuned transformations of all old rows."""

from typing import Literal

from methods.mib import MiB


class NeST(MiB):
    """MiB with its option `pre_tuning`, which plop and mbs have, too: `methods/pre_tuning.py` has the stages."""

    class Options(MiB.Options):
        pre_tuning: Literal["off", "transformed", "direct"] = "transformed"
        """Tune new classes before the step (NeST): as transformations of all old rows, or, from the background's row
        on, directly."""

    options: Options
    needs_new_classes = True

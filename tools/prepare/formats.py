"""The formats of tools/prepare_folder.py, by the name that the command line gives them: a line each."""

from collections.abc import Mapping

from tools.prepare.cityscapes import CITYSCAPES
from tools.prepare.coco import COCO
from tools.prepare.labelme import LABELME
from tools.prepare.samples import Format

FORMATS: Mapping[str, Format] = {
    "labelme": LABELME,
    "coco": COCO,
    "cityscapes": CITYSCAPES,
}

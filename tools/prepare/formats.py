"""The formats of tools/prepare_folder.py, by the name that the command line gives them: a line each."""

from collections.abc import Mapping

from tools.prepare.cityscapes import CITYSCAPES
from tools.prepare.coco import COCO
from tools.prepare.cvat import CVAT
from tools.prepare.cvat_masks import CVAT_MASKS
from tools.prepare.label_studio import LABEL_STUDIO
from tools.prepare.labelme import LABELME
from tools.prepare.roboflow import ROBOFLOW
from tools.prepare.samples import Format
from tools.prepare.supervisely import SUPERVISELY
from tools.prepare.via import VIA
from tools.prepare.yolo import YOLO

FORMATS: Mapping[str, Format] = {
    "labelme": LABELME,
    "coco": COCO,
    "cvat": CVAT,
    "cvat-masks": CVAT_MASKS,
    "yolo": YOLO,
    "label-studio": LABEL_STUDIO,
    "via": VIA,
    "supervisely": SUPERVISELY,
    "roboflow": ROBOFLOW,
    "cityscapes": CITYSCAPES,
}

"""What this repository holds of what anybody may add to: a copy may have more."""

OURS = {
    "method": {
        "mbs",
        "finetune",
        "joint",
        "lwf",
        "ilt",
        "mib",
        "plop",
        "ssul",
        "dkd",
        "ewf",
        "nest",
        "star",
        "barm",
        "mbs_ucb",
        "plop_ucb",
        "ssul_ucb",
        "rcil",
        "dft",
        "ridge",
        "segacil",
    },
    "data": {"voc", "ade20k", "cityscapes", "folder", "shapes"},
    "model": {"deeplabv3", "segmenter"},
}

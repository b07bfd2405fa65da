"""Labels that are no classes."""

IGNORE_INDEX = 255
"""Label of pixels that no loss and no score counts."""
SALIENT = 254
"""Label of background that is salient, where `data.saliency` says what is."""

"""Videos, frame by frame, where the package av is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.console import progress_bar
from utils.errors import DataError
from utils.images import UInt8Array

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def read_frames(path: Path, every: int) -> Iterator[tuple[int, UInt8Array]]:
    """Yield number, from 0, and pixels (H,W,3) of every `every`-th frame of a video, turned upright.

    Raises DataError naming the file where it cannot be decoded, or av is missing.
    """
    try:
        import av
    except ImportError as error:
        raise DataError(f"{path}: a video, which the package av reads: pip install av") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video; leave it out")
            stream = container.streams.video[0]
            what, count = f"predicting {path.name}", stream.frames
            frames = progress_bar(what, count, "frame", over=container.decode(stream))
            for number, frame in enumerate(frames):
                if number % every == 0:
                    yield number, _upright(frame)
    except (av.error.FFmpegError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a video that av can decode ({reason}); replace the file") from error


def _upright(frame: Any) -> UInt8Array:
    """Return the pixels of a frame, turned as the video says, anticlockwise."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(getattr(frame, "rotation", 0) / 90)
    return np.ascontiguousarray(np.rot90(pixels, quarters))

"""mp4 files (libx264)."""

import fractions
import pathlib
import types

import av
import numpy as np

from pixel_ddpg.config import UserError

MEND_OPENCV = "apt-get install libgl1 libglib2.0-0"


def opencv() -> types.ModuleType:
    """cv2; UserError where the system lacks its libraries."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"opencv does not load ({error}): `{MEND_OPENCV}`", 1) from None
    return cv2


class Video:
    """Writes pictures, uint8 (3, size, size), to an mp4; use it as a context."""

    def __init__(self, path: pathlib.Path, frames_per_second: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # says which file cannot be written, at once; av says it later and without the name
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(
            "libx264", rate=fractions.Fraction(frames_per_second).limit_denominator(1000)
        )
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "23", "movflags": "+faststart"}
        self._sized = False

    def __enter__(self) -> "Video":
        return self

    def add(self, picture: np.ndarray) -> None:
        """One more frame."""
        if not self._sized:
            self._stream.height, self._stream.width = picture.shape[1:]
            self._sized = True
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *error) -> None:
        if self._sized:
            self._container.mux(self._stream.encode())
        self._container.close()

"""mp4 files (libx264)."""

import fractions
import io
import pathlib
import types

import numpy as np

from pixel_ddpg import files
from pixel_ddpg.errors import UserError

FIX_OPENCV = "apt-get install libgl1 libglib2.0-0"


def opencv() -> types.ModuleType:
    """cv2; UserError where the system lacks its libraries."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"opencv does not load ({error}): `{FIX_OPENCV}`", code=1) from None
    return cv2


class Video:
    """Makes an mp4 of pictures, uint8 (3, size, size); use it as a context, at whose end the file is written, whole."""

    def __init__(self, path: pathlib.Path, frames_per_second: float):
        import av  # here, so that training without films does not need it

        path.parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(path)
        self._path, self._buffer = path, io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._stream = self._container.add_stream(
            "libx264", rate=fractions.Fraction(frames_per_second).limit_denominator(1000)
        )
        self._stream.pix_fmt = "yuv420p"
        # mbtree reads memory that was never written: equal pictures would make films of other bytes
        self._stream.options = {"crf": "23", "x264-params": "mbtree=0"}
        self._to_frame, self._sized = av.VideoFrame.from_ndarray, False

    def __enter__(self) -> "Video":
        return self

    def add(self, picture: np.ndarray) -> None:
        """One more frame."""
        if not self._sized:
            self._stream.height, self._stream.width = picture.shape[1:]
            self._sized = True
        frame = self._to_frame(np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: type | None, *error) -> None:
        if self._sized:
            self._container.mux(self._stream.encode())
        self._container.close()
        if kind is None:
            files.write_atomically(self._path, self._buffer.getvalue())

"""PCM samples to frames, as they arrive: what does not fill a frame is held back."""

from __future__ import annotations

import numpy as np


class PcmCodec:
    """Cuts little-endian 16-bit samples into frames, so that frames do not depend on how the samples were cut."""

    # what a whole sequence that gives no step is answered with
    nothing = "the sound is shorter than a frame"

    def __init__(self, frame_samples: int) -> None:
        self.frame_samples = frame_samples

    def take(self, tail: bytes, chunk: bytes, end: bool) -> tuple[np.ndarray, bytes]:
        """Frames int16 [n, frame_samples] that are now whole, and the new tail (less than a frame).

        tail: what was held back; end: nothing follows. A last frame that is not whole is no step, never filled up.
        """
        data = tail + chunk
        size = 2 * self.frame_samples
        whole = len(data) // size
        frames = np.frombuffer(data, "<i2", whole * self.frame_samples).reshape(whole, self.frame_samples)
        return frames, b"" if end else data[whole * size :]

"""A writer of GIFs that keeps some colours as they are."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.animation import AbstractMovieWriter
from matplotlib.colors import to_rgb
from PIL import Image

__all__ = ["GifWriter"]

# What a GIF can hold.
MAX_COLORS = 256
# Frames that the other colours are taken from.
N_SAMPLES = 8
# Steps of 255 within which colours are taken for one another.
ROUGHNESS = 8


class GifWriter(AbstractMovieWriter):
    """Writer with one palette for all frames, which has the ``colors`` of small marks.

    Otherwise, each frame has the colours that cover most of it: small marks change theirs from frame to frame and look
    like one another.
    """

    def __init__(self, fps: int, colors: Iterable[str]) -> None:
        super().__init__(fps=fps)
        self.kept = np.rint(255 * np.array([to_rgb(color) for color in dict.fromkeys(colors)])).astype(np.int64)
        self.frames: list[Image.Image] = []

    @classmethod
    def isAvailable(cls) -> bool:  # matplotlib's name
        """Return whether it can be used, which is so where matplotlib is: it needs Pillow, too."""
        return True

    def setup(self, fig: Any, outfile: Any, dpi: float | None = None) -> None:
        """Begin a file."""
        super().setup(fig, outfile, dpi=dpi)
        self.frames = []

    def grab_frame(self, **savefig_kwargs: Any) -> None:
        """Keep the figure as a frame."""
        buffer = BytesIO()
        self.fig.savefig(buffer, **{**savefig_kwargs, "format": "rgba", "dpi": self.dpi})
        width, height = map(int, self.frame_size)
        pixels = np.frombuffer(buffer.getbuffer(), dtype=np.uint8).reshape(height, width, 4)
        self.frames.append(Image.fromarray(pixels[:, :, :3].copy()))

    def finish(self) -> None:
        """Write the file."""
        samples = self.frames[:: -(-len(self.frames) // N_SAMPLES)]
        montage = Image.fromarray(np.concatenate([np.asarray(frame) for frame in samples]))
        n_others = MAX_COLORS - len(self.kept)
        others = np.reshape(montage.quantize(n_others).getpalette() or [], (-1, 3))[:n_others]
        # Pillow finds the nearest colour only roughly: one next to a kept one would be taken in its place.
        apart = np.abs(others[:, None] - self.kept).max(axis=2).min(axis=1) > ROUGHNESS
        palette = Image.new("P", (1, 1))
        palette.putpalette(np.concatenate([self.kept, others[apart]]).ravel().tolist())
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        frames[0].save(self.outfile, save_all=True, append_images=frames[1:], duration=int(1000 / self.fps), loop=0)

"""Pictures of validation episodes: one row for each, from its prompt to its answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mvg_core.training.episodes import KINDS, Episodes
from mvg_core.training.writing import cannot_write

COLUMNS = ("prompt image", "prompt label", "query", "painted", "target")
PER_KIND = 2
"""Rows of each kind of task."""
TILE, GAP, HEAD, SIDE, LETTERS = 160, 4, 26, 150, 15

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""


@dataclass(frozen=True)
class Row:
    """One episode: what it asks for, how well that was done, and its images in the order of `COLUMNS`."""

    kind: str
    score: str
    images: Sequence[Picture]


class Panels:
    """Collects the first episodes of every kind."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, episodes: Episodes, answers: Sequence[Mapping[str, Any]]) -> None:
        """Take rows from a batch.

        Args:
            episodes: what was asked.
            answers: for each episode its `pred` (3, H, W), and its `dice` or `ssim` and `psnr`.
        """
        for b, answer in enumerate(answers):
            kind = KINDS[int(episodes.kinds[b])]
            if sum(row.kind == kind for row in self.rows) == PER_KIND:
                continue
            score = f"Dice {answer['dice']:.2f}" if kind == "segmentation" else (
                f"SSIM {answer['ssim']:.2f}\n{answer['psnr']:.1f} dB")
            shown = (episodes.images[b, 1], episodes.labels[b, 1], episodes.images[b, 0], answer["pred"],
                     episodes.labels[b, 0])
            self.rows.append(Row(kind, score, [_picture(image) for image in shown]))

    def write(self, path: Path) -> None:
        """Write all rows as one PNG, kinds together; `path` holds all of it or is untouched.

        Raises:
            CheckpointError: no space, or no permission.
        """
        rows = sorted(self.rows, key=lambda row: KINDS.index(row.kind))
        font = ImageFont.load_default(LETTERS)
        sheet = Image.new("RGB", (SIDE + len(COLUMNS) * (TILE + GAP), HEAD + len(rows) * (TILE + GAP)), (14, 16, 22))
        draw = ImageDraw.Draw(sheet)
        for column, title in enumerate(COLUMNS):
            draw.text((SIDE + column * (TILE + GAP) + 2, 4), title, font=font)
        for number, row in enumerate(rows):
            top = HEAD + number * (TILE + GAP)
            draw.text((8, top + TILE // 2 - 24), f"{row.kind}\n{row.score}", font=font)
            for column, image in enumerate(row.images):
                tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR)
                sheet.paste(tile, (SIDE + column * (TILE + GAP), top))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(temporary, format="PNG")
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def _picture(image: Tensor) -> Picture:
    """(1 or 3, H, W) in [0, 1] as RGB."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return np.ascontiguousarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0))

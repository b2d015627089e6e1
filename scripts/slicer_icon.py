"""Draw the icon of the Slicer module: a stack of slices, the front one labelled, the others following.

    python scripts/slicer_icon.py [--output slicer_extension/MVG/Resources/Icons/MVG.png]

128 x 128 pixels with transparency, as the extension manager wants it. Needs Pillow (extra `train` or `dev`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

OUTPUT = Path(__file__).resolve().parents[1] / "slicer_extension" / "MVG" / "Resources" / "Icons" / "MVG.png"
SIDE = 128
_FINE = 8
"""Drawn this many times larger and reduced, which smooths the edges."""

_PAPER, _EDGE = (20, 24, 34), (222, 226, 234)
_TEAL, _AMBER = (38, 198, 190), (255, 167, 66)


def icon(side: int = SIDE) -> Image.Image:
    """The icon, RGBA."""
    canvas = Image.new("RGBA", (side * _FINE, side * _FINE), (0, 0, 0, 0))
    unit = side * _FINE / 128
    # From the back to the front: left and upper corner, and how strongly the label has come through.
    for corner, strength in (((42, 6), 0.35), ((24, 24), 0.65), ((6, 42), 1.0)):
        canvas.alpha_composite(_slice(canvas.size, corner, strength, unit))
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


def _slice(size: tuple[int, int], corner: tuple[int, int], strength: float, unit: float) -> Image.Image:
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        x, y = corner
        return ((x + left) * unit, (y + top) * unit, (x + right) * unit, (y + bottom) * unit)

    def mixed(colour: tuple[int, int, int]) -> tuple[int, int, int]:
        red, green, blue = (round(dark + strength * (one - dark)) for dark, one in zip(_PAPER, colour, strict=True))
        return red, green, blue

    frame = {"fill": _PAPER, "outline": mixed(_EDGE), "width": round(3 * unit)}
    draw.rounded_rectangle(box(0, 0, 80, 80), radius=11 * unit, **frame)
    draw.ellipse(box(13, 10, 67, 70), fill=mixed((120, 126, 140)))
    draw.ellipse(box(19, 17, 61, 63), fill=mixed(_TEAL))
    draw.ellipse(box(29, 30, 51, 54), fill=mixed(_AMBER))
    return layer


def main() -> None:
    """Write the icon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    icon().save(output, optimize=True)
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()

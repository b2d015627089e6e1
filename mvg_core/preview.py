"""A picture of some slices of a prediction, for a quick look: image, truth, prediction and confidence, row by row.

NumPy draws it and SimpleITK stores it, so it needs no plotting package.

Shape letters: H W pixels; N slices; S side of a tile.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from mvg_core.codecs import CAPACITY, palette
from mvg_core.intensity import IntensityScaling
from mvg_core.references import labels_in, marked_slices
from mvg_core.report import temporary_beside
from mvg_core.slices import SlicePlan
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWriteError

MOST_SLICES = 6
TILE = 256
OPACITY = 0.55

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

_GAP = 6
_GUTTER = 144
_STRIP = 30
_SCALE = 2
_PAPER = np.array((14, 16, 22), np.uint8)
_INK = np.array((222, 226, 234), np.uint8)
_WARNING = np.array((255, 176, 64), np.uint8)

# From bright to dark as confidence grows, so that the eye goes where the network is unsure.
_HEAT_STOPS = np.array([(252, 226, 112), (238, 128, 58), (186, 68, 98), (112, 48, 126), (58, 32, 110), (8, 8, 20)])

# 5 x 7 pixels, as on character displays: one base-32 digit for each row, one bit for each pixel.
_FONT = {
    "0": "ehjlphe", "1": "4c4444e", "2": "eh1248v", "3": "v2421he", "4": "26aiv22", "5": "vgu11he", "6": "68guhhe",
    "7": "v124888", "8": "ehhehhe", "9": "ehhf12c", "A": "ehhvhhh", "B": "uhhuhhu", "C": "ehggghe", "D": "sihhhis",
    "E": "vgguggv", "F": "vgguggg", "G": "ehgnhhf", "H": "hhhvhhh", "I": "e44444e", "J": "72222ic", "K": "hikokih",
    "L": "ggggggv", "M": "hrllhhh", "N": "hhpljhh", "O": "ehhhhhe", "P": "uhhuggg", "Q": "ehhhlid", "R": "uhhukih",
    "S": "fgge11u", "T": "v444444", "U": "hhhhhhe", "V": "hhhhha4", "W": "hhhllla", "X": "hha4ahh", "Y": "hhha444",
    "Z": "v1248gv", "-": "000v000", ".": "00000cc", "/": "11248gg", "_": "000000v",
}  # fmt: skip


def label_colours(labels: Sequence[int]) -> dict[int, Picture]:
    """A display colour (3,) for each label, in ascending order of the numbers; repeats after 25.

    They are those of the wide palette without white, which is hard to see on an image.
    """
    colours = palette("wide", CAPACITY["wide"])[2:]
    shown = (colours * 255).round().astype(np.uint8)
    return {label: shown[rank % len(shown)] for rank, label in enumerate(sorted(set(labels) - {0}))}


def overlay(image: npt.NDArray[np.float32], label: npt.NDArray[np.integer], colours: Mapping[int, Picture]) -> Picture:
    """An image with label colours over it, their borders in full colour.

    Args:
        image: (H, W) in [0, 1].
        label: (H, W); what `colours` does not name is left as it is.
        colours: see `label_colours`.
    """
    picture = _grey(image).astype(np.float32)
    border = _border(label)
    for number, colour in colours.items():
        inside = label == number
        picture[inside] += OPACITY * (colour - picture[inside])
        picture[inside & border] = colour
    return picture.round().astype(np.uint8)


def heat(values: npt.NDArray[np.float32]) -> Picture:
    """Numbers (H, W) in [0, 1] as colours from yellow (0) to black (1)."""
    at = np.clip(values, 0, 1) * (len(_HEAT_STOPS) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT_STOPS)), stops) for stops in _HEAT_STOPS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def slices_to_show(labelled: Sequence[int], n_slices: int, most: int = MOST_SLICES) -> list[int]:
    """Evenly spread slice numbers.

    Args:
        labelled: ascending numbers of slices with any label; the range from the first to the last is shown. Empty: all.
        n_slices: N.
        most: not more than this.
    """
    first, last = (labelled[0], labelled[-1]) if labelled else (0, n_slices - 1)
    n_shown = min(most, last - first + 1)
    # Centres of equal parts: the very ends of an organ show little.
    return [first + int((2 * part + 1) * (last - first + 1) / (2 * n_shown)) for part in range(n_shown)]


def draw_preview(image: Volume, prediction: Volume, axis: int, *, confidence: Volume | None = None,
                 truth: Volume | None = None, names: Mapping[int, str] | None = None,
                 colours: Mapping[int, tuple[int, int, int]] | None = None, is_label: bool = True,
                 doubtful: Collection[int] = ()) -> Picture:
    """Some slices side by side; rows are image, truth (if given), prediction, confidence (if given).

    Args:
        image: the query.
        prediction: on the query's grid.
        axis: index axis along which slices are taken.
        confidence: in [0, 1], on the query's grid.
        truth: on the query's grid.
        names: of labels, for the legend.
        colours: of labels, 0 to 255; those without one get theirs from `label_colours`.
        is_label: prediction and truth are label maps; False: images, shown as the query is (or by their own range if
            they lie outside its range).
        doubtful: numbers of slices to be marked as such; all of them are named at the bottom.
    """
    numbers = slices_to_show(marked_slices(prediction.array, axis) if is_label else [], prediction.array.shape[axis])
    plan = SlicePlan.for_volume(image.geometry, axis, size=TILE)
    grey = _scaled(image, plan, numbers)
    rows: list[tuple[str, list[Picture]]] = [("IMAGE", [_grey(tile) for tile in grey])]
    palette_of: dict[int, Picture] = {}
    if is_label:
        answers = [volume.array for volume in (prediction, truth) if volume is not None]
        palette_of = label_colours(sorted(set[int]().union(*map(labels_in, answers))))
        palette_of |= {n: np.array(colour, np.uint8) for n, colour in (colours or {}).items() if n in palette_of}
    for title, answer in (("TRUTH", truth), ("PREDICTION", prediction)):
        if answer is None:
            continue
        if is_label:
            labels = plan.extract_label(answer.array, numbers)
            rows.append((title, [overlay(*pair, palette_of) for pair in zip(grey, labels, strict=True)]))
        else:
            rows.append((title, [_grey(tile) for tile in _scaled(answer, plan, numbers)]))
    if confidence is not None:
        rows.append(("CONFIDENCE", [heat(tile) for tile in plan.extract(confidence.array, numbers, fill=1)]))
    picture = _grid(rows, [(f"SLICE {number}", number in doubtful) for number in numbers])
    scale = [] if confidence is None else [_confidence_scale(picture.shape[1])]
    return np.vstack([picture, *_legend(palette_of, names or {}, picture.shape[1]), *scale,
                      *_doubts(doubtful, picture.shape[1])])


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG so that `path` holds all of it or is untouched.

    Raises:
        VolumeWriteError: no space, no permission.
    """
    temporary = temporary_beside(path)
    try:
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(picture), isVector=True), str(temporary))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise VolumeWriteError(f"{path}: the picture could not be written: check free space and permissions") from error
    finally:
        temporary.unlink(missing_ok=True)


def _scaled(volume: Volume, plan: SlicePlan, numbers: list[int]) -> npt.NDArray[np.float32]:
    try:
        scaling = IntensityScaling.for_volume(volume.array)
    except ValueError:  # constant
        return np.zeros((len(numbers), plan.size, plan.size), np.float32)
    return scaling.apply(plan.extract(volume.array, numbers, fill=scaling.low))


def _grey(image: npt.NDArray[np.float32]) -> Picture:
    return np.repeat((np.clip(image, 0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def _border(label: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Pixels with a pixel of another label above, below, left or right of them."""
    padded = np.pad(label, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.any([neighbour != label for neighbour in neighbours], axis=0)


def _grid(rows: list[tuple[str, list[Picture]]], titles: list[tuple[str, bool]]) -> Picture:
    """Tiles (S, S, 3) with a title at the left of every row and above every column, there also whether to warn."""
    n_columns, step = len(titles), TILE + _GAP
    picture = _sheet(_STRIP + len(rows) * step, _GUTTER + n_columns * step)
    for column, (title, warn) in enumerate(titles):
        left = _GUTTER + column * step + 4
        _write(picture, f"{title} DOUBTFUL" if warn else title, 8, left, _WARNING if warn else _INK)
    for number, (title, tiles) in enumerate(rows):
        top = _STRIP + number * step
        _write(picture, title, top + TILE // 2 - 8, 8)
        for column, tile in enumerate(tiles):
            left = _GUTTER + column * step
            picture[top : top + TILE, left : left + TILE] = tile
    return picture


def _legend(colours: Mapping[int, Picture], names: Mapping[int, str], width: int) -> list[Picture]:
    """A strip with a patch of colour, number and name for each label; as many strips as it needs."""
    strips: list[Picture] = []
    left = width
    for number, colour in colours.items():
        text = f"{number} {names.get(number, '')}".strip()
        needed = 26 + _text_width(text) + 24
        if left + needed > width:
            strips.append(_sheet(_STRIP, width))
            left = _GUTTER + 4 if _GUTTER + needed < width else 8
        strips[-1][7:23, left : left + 16] = colour
        _write(strips[-1], text, 8, left + 26)
        left += needed
    return strips


def _confidence_scale(width: int) -> Picture:
    strip = _sheet(_STRIP, width)
    _write(strip, "CONFIDENCE", 8, 8)
    bar = heat(np.linspace(0, 1, 120, dtype=np.float32))
    _write(strip, "0", 8, _GUTTER + 4)
    strip[7:23, _GUTTER + 26 : _GUTTER + 146] = bar
    _write(strip, "1", 8, _GUTTER + 156)
    return strip


def _doubts(numbers: Collection[int], width: int) -> list[Picture]:
    """Strips that name the doubtful slices; following numbers as a range."""
    strips: list[Picture] = []
    left = width
    for text in ranges(numbers):
        if left + _text_width(text) > width:
            strips.append(_sheet(_STRIP, width))
            left = _GUTTER + 4
            _write(strips[-1], "DOUBTFUL", 8, 8, _WARNING)
        _write(strips[-1], text, 8, left, _WARNING)
        left += _text_width(text) + 24
    return strips


def ranges(numbers: Collection[int]) -> list[str]:
    """Numbers as short text: 3, 4, 5, 9 -> 3-5, 9."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]


def _sheet(height: int, width: int) -> Picture:
    return np.broadcast_to(_PAPER, (height, width, 3)).copy()


def _text_width(text: str) -> int:
    return 6 * _SCALE * len(text)


def _write(picture: Picture, text: str, top: int, left: int, colour: Picture = _INK) -> None:
    """Write in capitals; letters that the font does not have stay blank, and what passes the edge is cut off."""
    for place, letter in enumerate(text.upper()):
        rows = [[bit == "1" for bit in f"{int(row, 32):05b}"] for row in _FONT.get(letter, "0000000")]
        pixels = np.kron(np.array(rows, bool), np.ones((_SCALE, _SCALE), bool))
        at = left + 6 * _SCALE * place
        area = picture[top : top + pixels.shape[0], at : at + pixels.shape[1]]
        area[pixels[: area.shape[0], : area.shape[1]]] = colour

"""CT as it would look at a lower dose: photon noise is added to the line integrals, not to the image.

Source: Radon transform of the attenuation, Beer-Lambert, Poisson counts, filtered back-projection of the noise alone,
so that the full-dose image itself is not blurred by projecting it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage.transform import iradon, radon

WATER_PER_MM = 0.0195
"""Attenuation of water at about 70 keV."""
PHOTONS = 2e4
"""Sent towards each detector element in each view, at 1 mm pixels; fewer at larger ones, whose noise would be averaged
away: so many that the noise in HU is about the same."""
ELECTRONIC = 3.0
"""Standard deviation of the detector's own noise, in photons."""
VIEWS = 180


def low_dose_slice(slice_hu: npt.NDArray, pixel_mm: float, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """An axial slice (H, W) with the noise of a low dose, float32 in HU.

    Args:
        slice_hu: (H, W) with square pixels.
        pixel_mm: their side.
        random: source of the photons.
    """
    attenuation = np.clip(slice_hu.astype(np.float64) / 1000 + 1, 0, None) * WATER_PER_MM
    pad = _to_square(attenuation.shape)
    square = np.pad(attenuation, pad)
    angles = np.linspace(0, 180, VIEWS, endpoint=False)
    line_integrals = radon(square, angles, circle=False) * pixel_mm
    photons = PHOTONS / pixel_mm**2
    counts = random.poisson(photons * np.exp(-line_integrals)) + random.normal(0, ELECTRONIC, line_integrals.shape)
    noise = -np.log(np.maximum(counts, 1) / photons) - line_integrals
    added = iradon(noise / pixel_mm, angles, output_size=len(square), circle=False)
    (top, _), (left, _) = pad
    added = added[top : top + slice_hu.shape[0], left : left + slice_hu.shape[1]]
    return (slice_hu + added / WATER_PER_MM * 1000).astype(np.float32)


def _to_square(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    missing = [max(shape) - side for side in shape]
    return [(each // 2, each - each // 2) for each in missing]

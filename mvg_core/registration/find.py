"""From two images to an alignment."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from mvg_core.demons import demons, resampled
from mvg_core.intensity import check_finite
from mvg_core.registration.alignment import Alignment, Steps
from mvg_core.registration.config import RegistrationConfig
from mvg_core.registration.grids import WIDE, lifted
from mvg_core.registration.pair import Pair
from mvg_core.registration.search import Stage, agreement, found_affine, reason_of
from mvg_core.volume import Volume

_WORSE = 1e-3
"""Demons whose match is worse by more than this are left out."""

def align(query: Volume, image: Volume, config: RegistrationConfig | None = None, *, label: Volume | None = None,
          affine_only: bool = False) -> Alignment:
    """Find how a reference image lies on a query: shift, affine and, unless left out, demons.

    The headers are trusted for directions and scale, not for position: shifts are searched over the whole range in
    which the images overlap. A step that fails, or makes the match worse, is left out, and `Alignment.remarks` says so.

    Args:
        query: the image to solve.
        image: the reference's image.
        config: how hard to look.
        label: the reference's label map; the match is sought around what is not 0. None matches the whole images.
        affine_only: stop before the demons; `refine` adds them later.

    Raises:
        ValueError: an image holds NaN.
    """
    started = time.perf_counter()
    config = config or RegistrationConfig()
    for volume, name in ((query, "query"), (image, "reference image")):
        check_finite(volume.array, name)
    pair = Pair.of(query, image, label)
    if pair.remark:
        return _finished(pair, "centre", pair.start(), None, (pair.remark,), config, started)
    stage, found, remarks = found_affine(pair, config)
    alignment = _finished(pair, stage, found, None, remarks, config, started)
    return alignment if affine_only else refine(alignment, query, image, config, label=label)


def refine(alignment: Alignment, query: Volume, image: Volume, config: RegistrationConfig | None = None, *,
           label: Volume | None = None) -> Alignment:
    """The alignment with demons added, unless they make the match worse; see `align`."""
    started = time.perf_counter()
    config = config or RegistrationConfig()
    pair = Pair.of(query, image, label)
    if config.demons_mm is None or pair.remark:
        return alignment
    affine = alignment.steps.within
    seen = Pair.of(query, image, label, WIDE)
    fixed = seen.working(0, config.demons_mm, alignment.box(seen.focus))
    reached = resampled(seen.working(1, config.demons_mm), fixed, affine, threads=config.threads)
    remarks = alignment.remarks
    try:
        bent = demons(fixed, reached, replace(config.demons, threads=config.threads))
    except RuntimeError as error:
        remarks += (f"demons failed ({reason_of(error)})",)
        return _finished(pair, alignment.stage, affine, None, remarks, config, started, alignment)
    better = _finished(pair, "demons", affine, bent, remarks, config, started, alignment)
    if better.quality >= alignment.quality - _WORSE:
        return better
    remarks += (f"demons were left out: the match fell from {alignment.quality:.3f} to {better.quality:.3f}",)
    return _finished(pair, alignment.stage, affine, None, remarks, config, started, alignment)


def warp_volume(query: Volume, image: Volume, label: Volume, config: RegistrationConfig | None = None) -> Volume:
    """Register a reference's image onto a query, and carry its label map along; see `align`.

    Returns:
        The label map on the query's grid, in the label's type.
    """
    return align(query, image, config, label=label).label(label)


def _finished(pair: Pair, stage: Stage, within: sitk.Transform, bend: sitk.Image | None, remarks: tuple[str, ...],
              config: RegistrationConfig, started: float, before: Alignment | None = None) -> Alignment:
    """The alignment with its quality."""
    quality, overlap = 0.0, 0.0
    if None not in pair.scalings and not pair.remark:
        quality, overlap = _match(pair, within, bend, config)
    reach_mm = 0.0
    if bend is not None:
        farthest = float(np.linalg.norm(sitk.GetArrayViewFromImage(bend), axis=-1).max())
        reach_mm = farthest * float(np.linalg.norm(np.linalg.inv(pair.frames[0])[:3, :3], 2))
    bend = bend if bend is None or pair.n_axes == 3 else lifted(bend)
    steps = Steps(pair.frames[0], bend, within, np.linalg.inv(pair.frames[1]), reach_mm, config.threads)
    seconds = time.perf_counter() - started + (before.seconds if before else 0)
    return Alignment(pair.volumes[0].geometry, stage, quality, overlap, remarks, round(seconds, 3), steps)


def _match(pair: Pair, within: sitk.Transform, bend: sitk.Image | None, config: RegistrationConfig
           ) -> tuple[float, float]:
    """Correlation where both show something, and the share of the query that the reference covers."""
    fixed, moving = (pair.working(which, config.affine_mm) for which in (0, 1))
    transform = within
    if bend is not None:
        transform = sitk.CompositeTransform([within, sitk.DisplacementFieldTransform(sitk.Image(bend))])
    return agreement(fixed, moving, transform, config.threads)

"""The demo's question answered without a network: copying the reference label, and demons from slice to slice.

    python benchmarks/demo_baselines.py --report demo_output/report.json

Chained demons: the label of the reference slice is warped onto its neighbour, that result onto the next, and so on in
both directions. Writes benchmarks/results/demo.json and demo.md beside the numbers of `mvg demo`, and
bundle/models/model.numbers.json, which `mvg info` shows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mvg_core.demo import LABELS, dice, load_template, reference_slice

RESULTS = Path(__file__).parent / "results"
NUMBERS = Path(__file__).parent.parent / "bundle" / "models" / "model.numbers.json"
DEMONS = {"iterations": 60, "sigma": 1.5}


def warp_label(fixed: np.ndarray, moving: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Register `moving` (H, W) onto `fixed` (H, W) by demons, and carry `label` (H, W) along."""
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS["iterations"])
    demons.SetStandardDeviations(DEMONS["sigma"])
    images = [sitk.GetImageFromArray(image.astype(np.float32)) for image in (fixed, moving)]
    field = demons.Execute(*images)
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    warped = sitk.Resample(sitk.GetImageFromArray(label), images[0], transform, sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(warped)


def chained_demons(image: np.ndarray, label: np.ndarray, reference: int) -> np.ndarray:
    """Label map (I, J, K) from the one slice `reference` along K."""
    out = np.zeros_like(label)
    out[..., reference] = label[..., reference]
    for step, stop in ((1, image.shape[2]), (-1, -1)):
        for number in range(reference + step, stop, step):
            out[..., number] = warp_label(image[..., number], image[..., number - step], out[..., number - step])
    return out


def dice_of_labels(prediction: np.ndarray, truth: np.ndarray, reference: int) -> dict[str, float]:
    """Dice of each label over all slices but the reference."""
    others = np.arange(truth.shape[2]) != reference
    return {name: dice(prediction[..., others] == label, truth[..., others] == label) for label, name in LABELS.items()}


def main() -> None:
    """Measure the baselines and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("demo_output/report.json"))
    report = json.loads(parser.parse_args().report.read_text())
    template = load_template()
    truth, reference = template.truth.array, reference_slice(template.truth.array)
    image = template.image.array.astype(np.float32)
    started = time.perf_counter()
    demons = chained_demons(image / image.max(), truth, reference)
    seconds = (time.perf_counter() - started) / (image.shape[2] - 1)
    demons_dice = dice_of_labels(demons, truth, reference)
    rows = {"copy the reference label": (report["dice_copy"], None),
            "demons chained slice to slice": (demons_dice, seconds),
            "mvg_compact": (report["dice"], report["seconds_per_slice"])}
    names = list(report["dice"])
    lines = [f"| one slice -> volume (MNI152 T1, 1 mm) | {' | '.join(f'Dice {n}' for n in names)} | s per slice |",
             "|---" * (len(names) + 2) + "|"]
    lines += [f"| {row} | {' | '.join(f'{scores[n]:.3f}' for n in names)} | {'-' if s is None else f'{s:.3f}'} |"
              for row, (scores, s) in rows.items()]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(
        {row: {"dice": scores, "seconds_per_slice": s} for row, (scores, s) in rows.items()}, indent=2) + "\n")
    (RESULTS / "demo.md").write_text("\n".join(lines) + "\n")
    numbers = {"checkpoint_sha256": report["checkpoint_sha256"], "demo": {
        "dice": report["dice"], "dice_copy": report["dice_copy"],
        "dice_chained_demons": {name: round(value, 4) for name, value in demons_dice.items()},
        "denoising": report["denoising"], "inpainting": report["inpainting"]}}
    NUMBERS.write_text(json.dumps(numbers, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

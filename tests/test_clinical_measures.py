"""Volume and surface of labels against the formulas of a sphere and a box."""

from __future__ import annotations

import numpy as np
import pytest

from mvg_core.clinical import measures
from mvg_core.clinical.measures import measure_labels, surface_areas_mm2
from mvg_core.predict import Prediction
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, Volume

VOXELS = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.0, 1.0, 0.5)]


def sphere(radius_mm: float, spacing_mm: tuple[float, float, float], label: int = 1) -> np.ndarray:
    axes = [(np.arange(2 * int(radius_mm / step) + 5) - int(radius_mm / step) - 2) * step for step in spacing_mm]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.where(x**2 + y**2 + z**2 <= radius_mm**2, label, 0).astype(np.uint8)


def box_area(n: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> float:
    a, b, c = np.multiply(n, spacing_mm)
    return 2 * (a * b + b * c + a * c)


@pytest.mark.parametrize("spacing_mm", VOXELS)
@pytest.mark.parametrize("radius_mm", [5, 10, 20])
def test_a_sphere_has_the_surface_of_the_formula(spacing_mm: tuple[float, float, float], radius_mm: float) -> None:
    found = surface_areas_mm2(Volume.from_array(sphere(radius_mm, spacing_mm), spacing_mm))
    assert found == {1: pytest.approx(4 * np.pi * radius_mm**2, rel=0.09)}


@pytest.mark.parametrize("spacing_mm", VOXELS)
def test_a_box_has_the_surface_of_the_formula_also_at_the_edge_of_the_image(
        spacing_mm: tuple[float, float, float]) -> None:
    array = np.zeros((40, 30, 24), np.uint8)
    array[4:24, 5:17, 6:16], array[30:, 18:, :10] = 3, 9
    found = surface_areas_mm2(Volume.from_array(array, spacing_mm))
    assert found == {3: pytest.approx(box_area((20, 12, 10), spacing_mm), rel=0.09),
                     9: pytest.approx(box_area((10, 12, 10), spacing_mm), rel=0.11)}
    cut = Volume.from_array(array[4:24, 5:17, 6:16], spacing_mm)
    assert surface_areas_mm2(cut) == {label: area for label, area in (found or {}).items() if label == 3}


def test_a_turned_grid_does_not_change_the_surface() -> None:
    array = sphere(8, (1, 1, 2))
    angle = np.deg2rad(33)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[2, 2] = 2
    turned = surface_areas_mm2(Volume(array, Geometry(array.shape, affine)))
    assert turned == surface_areas_mm2(Volume.from_array(array, (1, 1, 2)))


@pytest.mark.parametrize("voxels", [1, 800, 3000, 10_000])
def test_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, voxels: int) -> None:
    volume = Volume.from_array(sphere(9, (1, 1, 1)))
    whole = surface_areas_mm2(volume)
    monkeypatch.setattr(measures, "_LARGEST_PIECE_VOXELS", voxels)
    assert surface_areas_mm2(volume) == {1: pytest.approx(whole[1], abs=0.02)}  # pyright: ignore[reportOptionalSubscript]


def test_a_single_slice_and_no_label_have_no_surface() -> None:
    assert surface_areas_mm2(Volume.from_array(np.ones((9, 9, 1), np.uint8))) is None
    assert surface_areas_mm2(Volume.from_array(np.zeros((9, 9, 9), np.uint8))) == {}


def test_measures_of_found_and_missing_labels() -> None:
    array = np.zeros((30, 20, 12), np.uint8)
    array[5:25, 4:16, 1:11] = 2
    labels = Volume.from_array(array, (0.5, 1, 2))
    confidence = labels.with_array(np.where(array == 2, 0.75, 0.1).astype(np.float32))
    found, missing = measure_labels(Prediction(labels, confidence), Task.segmentation({2: "liver", 6: "spleen"}))
    area = found.pop("surface_mm2")
    assert area == pytest.approx(box_area((20, 12, 10), (0.5, 1, 2)), rel=0.09)
    assert found == {"label": 2, "name": "liver", "voxels": 2400, "volume_ml": 2.4, "mean_confidence": 0.75}
    assert missing == {"label": 6, "name": "spleen", "voxels": 0, "volume_ml": 0.0, "surface_mm2": 0.0,
                       "mean_confidence": None}

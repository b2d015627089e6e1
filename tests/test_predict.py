"""Volumes through networks whose answers are known: what comes back must be exact, on any grid and in any order."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core.intensity import IntensityScaling
from mvg_core.predict import PredictionWarning, Predictor
from mvg_core.prompts import Prompt, Support
from mvg_core.recent import Recent
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, GeometryError, Volume

REPOSITORY = Path(__file__).resolve().parents[1]
GREYS = (0.0, 255.0)
ALL = 10_000
PLANES = ("axial", "coronal", "sagittal")


class Recorder:
    """What all networks here share: they remember what they were given."""

    name, checkpoint_sha256 = "oracle", "0123"

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.card: dict[str, Any] = {}
        self.prompts: list[tuple[np.ndarray, np.ndarray]] = []
        self.queries: list[np.ndarray] = []

    def encode(self, image: np.ndarray, label: np.ndarray) -> Any:
        assert (*image.shape, 3) == label.shape
        self.prompts.append((image.copy(), label.copy()))
        return (image, label)

    def merge(self, encoded: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        return list(encoded)

    def paint(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        assert queries.dtype == np.float32
        self.queries.append(queries.copy())
        return self.answer(queries, encoded)

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        raise NotImplementedError


class LookUp(Recorder):
    """Paints every grey with the colour that it has in the prompts; black if no prompt shows it."""

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        table = np.zeros((256, 3), np.float32)
        for image, label in encoded:
            table[np.rint(image * 255).astype(int)] = label
        return table[np.rint(queries * 255).astype(int)]


class Threshold(Recorder):
    """White where the query is bright."""

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return np.repeat((queries > 0.5).astype(np.float32)[..., None], 3, axis=-1)


class Copy(Recorder):
    """The query itself."""

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return np.repeat(queries[..., None], 3, axis=-1)


class Inverse(Recorder):
    """White becomes black."""

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return np.repeat(1 - queries[..., None], 3, axis=-1)


class Constant(Recorder):
    """One colour everywhere."""

    def __init__(self, size: int = 16, colour: Sequence[float] = (1, 1, 1)) -> None:
        super().__init__(size)
        self.colour = np.array(colour, np.float32)

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return np.broadcast_to(self.colour, (*queries.shape, 3))


def volume(array: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(array, Geometry(array.shape, np.eye(4) if affine is None else affine))


def spaced(array: np.ndarray, *spacing_mm: float) -> Volume:
    return volume(array, np.diag([*spacing_mm, 1.0]))


def shows_itself(labels: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    """An image whose greys are its labels."""
    return volume(labels.astype(np.float32), affine)


def solved(labels: np.ndarray, affine: np.ndarray | None = None, **more: Any) -> Reference:
    return Reference(shows_itself(labels, affine), volume(labels, affine), **more)


def random_labels(shape: tuple[int, int, int], n_labels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_labels + 1, shape).astype(np.uint8)


def longest_side(geometry: Geometry, axis: int) -> int:
    """The side at which nothing is resampled, if the spacing is the same in all directions."""
    return max(geometry.shape[other] for other in range(3) if other != axis)


def rotation(degrees: float) -> np.ndarray:
    """Oblique: about x, then about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


# --- segmentation: the exact volume comes back ---


@st.composite
def grids(draw: st.DrawFn) -> Geometry:
    """Tiny isotropic grids in any orientation, oblique or not."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3).filter(lambda s: s[0] * s[1] * s[2] > 1))
    order, signs = draw(st.permutations(range(3))), draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    matrix = rotation(draw(st.sampled_from((0.0, 12.0, 45.0)))) @ (np.eye(3)[:, order] * signs)
    affine = np.eye(4)
    affine[:3, :3] = matrix * draw(st.sampled_from((0.7, 1.0)))
    affine[:3, 3] = draw(st.tuples(*[st.integers(-50, 50)] * 3))
    return Geometry(shape, affine)


@given(grids(), st.sampled_from((*PLANES, 0, 1, 2)), st.integers(1, 9), st.integers(0, 2**31))
def test_an_oracle_gets_the_exact_volume(geometry: Geometry, plane: str | int, block: int, seed: int) -> None:
    labels = random_labels(geometry.shape, 3, seed)
    labels.flat[0], labels.flat[-1] = 0, 3  # neither constant nor empty
    query, reference = shows_itself(labels, geometry.affine), np.roll(labels, 1, axis=(0, 1, 2))
    axis = geometry.anatomical_axis(plane) if isinstance(plane, str) else plane  # type: ignore[arg-type]
    predictor = Predictor(LookUp(longest_side(geometry, axis)), n_prompts=ALL, block=block)
    prediction = predictor.predict_volume(query, solved(reference, geometry.affine), plane=plane, window=GREYS)
    np.testing.assert_array_equal(prediction.volume.array, labels)
    assert prediction.volume.array.dtype == np.uint8
    assert prediction.volume.geometry is query.geometry
    assert prediction.confidence is not None
    assert prediction.confidence.array.dtype == np.float32
    assert prediction.confidence.array.min() > 0.9  # the colours are exact


def test_all_48_orientations_give_the_same_voxels() -> None:
    labels = random_labels((3, 4, 5), 3)
    for order, signs in product(permutations(range(3)), product((-1, 1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * signs
        backend = LookUp(5)
        prediction = Predictor(backend, n_prompts=ALL).predict_volume(
            shows_itself(labels, affine), solved(np.roll(labels, 1, axis=0), affine), plane=0, window=GREYS)
        np.testing.assert_array_equal(prediction.volume.array, labels)


@pytest.mark.parametrize(
    ("spacing", "size", "axis"),
    [
        ((1, 2, 5), 8, 2),  # 8 x 8 mm: i as it is, j twice as fine
        ((2, 1, 0.3), 8, 2),
        ((1, 9, 2), 8, 1),
        ((7, 1, 1), 8, 0),  # both twice as fine
        ((0.5, 0.5, 0.5), 16, 2),  # 4 x 4 mm
    ],
)
@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_anisotropic_volumes_come_back_through_a_finer_grid(
    spacing: tuple[float, float, float], size: int, axis: int, degrees: float
) -> None:
    # Bright or dark survives interpolation onto a grid twice as fine, whatever the neighbours are: 0.75 x 0.75 > 0.5.
    others = [k for k in range(3) if k != axis]
    shape = tuple(5 if k == axis else round(size / spacing[k]) for k in range(3))
    if spacing in ((7, 1, 1), (0.5, 0.5, 0.5)):
        shape = tuple(5 if k == axis else size // 2 for k in range(3))
    labels = random_labels(shape, 1)  # type: ignore[arg-type]
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) * spacing
    assert max(shape[k] * spacing[k] for k in others) in (4, 8)
    prediction = Predictor(Threshold(size)).predict_volume(
        shows_itself(labels, affine), solved(np.roll(labels, 1), affine), plane=axis, window=(0, 1))
    np.testing.assert_array_equal(prediction.volume.array, labels)


def test_a_round_object_survives_a_coarser_grid() -> None:
    i, j, _ = np.indices((40, 40, 3))
    labels = ((i - 20) ** 2 + (j - 18) ** 2 < 12**2).astype(np.uint8)
    prediction = Predictor(Threshold(16)).predict_volume(shows_itself(labels), solved(np.roll(labels, 1)),
                                                         plane=2, window=(0, 1))
    both = (prediction.volume.array & labels).sum()
    assert 2 * both / (prediction.volume.array.sum() + labels.sum()) > 0.95


def test_pictures_are_fitted_each_by_itself() -> None:
    labels = random_labels((16, 12, 1), 3)
    doubled = labels.repeat(2, axis=0).repeat(2, axis=1)  # the same picture with twice the pixels
    predictor = Predictor(LookUp(16), n_prompts=ALL)
    prediction = predictor.predict_volume(shows_itself(labels), solved(doubled), window=GREYS)
    np.testing.assert_array_equal(prediction.volume.array, labels)
    one_slice = spaced(labels.astype(float), 2, 2, 5), spaced(labels, 2, 2, 5)
    prediction = predictor.predict_volume(one_slice[0], Reference(*one_slice), window=GREYS)
    np.testing.assert_array_equal(prediction.volume.array, labels)


@pytest.mark.parametrize("n_labels", [17, 40, 255])
def test_many_labels_are_painted_in_groups(n_labels: int) -> None:
    labels = np.stack([np.random.default_rng(k).permutation(256).reshape(16, 16) for k in range(3)], axis=2)
    labels = np.where(labels <= n_labels, labels, 0).astype(np.uint8)
    backend = LookUp(16)
    prediction = Predictor(backend, n_prompts=2).predict_volume(
        shows_itself(labels), solved(np.roll(labels, 1, axis=0)), plane=2, window=GREYS)
    np.testing.assert_array_equal(prediction.volume.array, labels)
    assert len(backend.prompts) == 3 * -(-n_labels // 16)  # each of the three prompts once in every group


def test_labels_that_the_prompts_do_not_show_stay_absent() -> None:
    labels = random_labels((8, 8, 4), 3)
    two = np.where(labels == 3, 0, labels)
    prediction = Predictor(LookUp(8), n_prompts=ALL).predict_volume(
        shows_itself(labels), Reference(shows_itself(np.roll(labels, 1)), volume(np.roll(two, 1))), window=GREYS)
    np.testing.assert_array_equal(prediction.volume.array, two)


def test_a_slice_gets_no_label_that_its_own_prompts_do_not_show() -> None:
    labels = np.zeros((8, 8, 4), np.uint8)
    labels[2:4, 2:4, 0] = 1
    labels[4:6, 4:6, 3] = 2
    black, white, magenta = (0, 0, 0), (1, 1, 1), (1, 1, 0)  # background, label 1, label 2
    reference = solved(labels)
    query = volume(np.random.default_rng(0).random((8, 8, 4)))
    for colour, expected in ((white, [1, 1, 0, 0]), (black, [0] * 4)):
        predictor = Predictor(Constant(8, colour), n_prompts=1)
        found = predictor.predict_volume(query, reference, plane=2).volume.array
        assert [np.unique(found[..., k]).tolist() for k in range(2)] == [[n] for n in expected[:2]]
        assert 1 not in found[..., 2:]
    found = Predictor(Constant(8, magenta), n_prompts=1).predict_volume(query, reference, plane=2).volume.array
    assert (found[..., 2:] == 2).all()
    assert 2 not in found[..., :2]


def test_the_task_chooses_among_the_labels_of_the_reference() -> None:
    labels = random_labels((8, 8, 4), 3)
    predictor = Predictor(LookUp(8), n_prompts=ALL)
    reference = solved(np.roll(labels, 1))
    found = predictor.predict_volume(shows_itself(labels), reference, Task.segmentation({2: "spleen"}), window=GREYS)
    np.testing.assert_array_equal(found.volume.array, np.where(labels == 2, 2, 0))
    assert found.provenance["labels"] == {"2": "spleen"}


def test_where_a_chosen_slice_shows_no_label_there_is_background() -> None:
    labels = random_labels((8, 8, 4), 2)
    labels[..., 0] = 0
    image = volume(np.random.default_rng(1).random((8, 8, 4)))
    reference = Reference(image, volume(labels), slices=(0, 3))
    backend = Constant(8)
    query = volume(np.random.default_rng(2).random((8, 8, 4)))
    prediction = Predictor(backend, n_prompts=1).predict_volume(query, reference, plane=2)
    assert not prediction.volume.array[..., :2].any()
    assert prediction.volume.array[..., 2:].all()
    assert prediction.confidence is not None
    assert (prediction.confidence.array[..., :2] == 1).all()


# --- one labelled slice ---


def test_solved_slices_of_the_query_are_kept() -> None:
    image = volume(np.random.default_rng(0).random((6, 7, 8)))
    label = np.zeros((6, 7, 8), np.uint8)
    label[1:4, 2:5, 2] = 3
    label[2:5, 3:6, 5] = 4
    almost_black = Constant(8, (0.4, 0.4, 0.4))
    prediction = Predictor(almost_black).predict_volume(image, Reference(image, volume(label)))
    np.testing.assert_array_equal(prediction.volume.array, label)  # all else is background
    assert prediction.confidence is not None
    assert (prediction.confidence.array[..., [2, 5]] == 1).all()
    assert (prediction.confidence.array[..., 0] < 1).all()
    assert prediction.provenance["plane"] == "axial"


def test_solved_slices_can_be_named_and_lie_in_any_plane() -> None:
    image = volume(np.random.default_rng(0).random((6, 7, 8)))
    label = random_labels((6, 7, 8), 2)
    reference = Reference(image, volume(label), slices=(1, 4))
    prediction = Predictor(Constant(8, (0, 0, 0))).predict_volume(image, reference, plane="coronal")
    expected = np.zeros_like(label)
    expected[:, [1, 4]] = label[:, [1, 4]]
    np.testing.assert_array_equal(prediction.volume.array, expected)


def test_slices_of_somebody_else_are_not_kept() -> None:
    labels = random_labels((6, 7, 8), 2)
    other = volume(np.random.default_rng(0).random((6, 7, 8)))
    prediction = Predictor(Constant(8, (0, 0, 0))).predict_volume(other, solved(labels))
    assert not prediction.volume.array.any()


def test_the_labels_grid_may_differ_from_the_images() -> None:
    labels = random_labels((8, 8, 6), 2)
    wide = np.pad(labels, ((3, 0), (0, 0), (0, 0)))
    moved = np.eye(4)
    moved[0, 3] = -3
    query = shows_itself(labels)
    predictor = Predictor(LookUp(8), n_prompts=ALL)
    found = predictor.predict_volume(query, Reference(shows_itself(labels), volume(wide, moved)), window=GREYS)
    np.testing.assert_array_equal(found.volume.array, labels)
    moved[0, 3] = -100
    with pytest.raises(GeometryError, match="do not overlap"):
        predictor.predict_volume(query, Reference(shows_itself(labels), volume(wide, moved)), window=GREYS)


# --- prompts ---


def disc(radius_mm: float, side: int, spacing_mm: float) -> np.ndarray:
    x, y = (np.indices((side, side)) - (side - 1) / 2) * spacing_mm
    return np.repeat((x**2 + y**2 < radius_mm**2)[..., None], 3, axis=2)


def test_prompts_and_query_have_one_physical_scale() -> None:
    fine, coarse = disc(9, 32, 1), disc(9, 32, 2)
    backend = Threshold(64)
    reference = Reference(spaced(coarse.astype(float), 2, 2, 3), spaced(coarse, 2, 2, 3))
    prediction = Predictor(backend).predict_volume(spaced(fine.astype(float), 1, 1, 3), reference, plane=2,
                                                   window=(0, 1))
    area = np.pi * 9**2  # 64 mm on 64 pixels
    for shown in (backend.queries[0][0], backend.prompts[0][0], backend.prompts[0][1][..., 0]):
        assert (shown > 0.5).sum() == pytest.approx(area, rel=0.06)
    assert prediction.provenance["pixel_spacing_mm"] == 1
    np.testing.assert_array_equal(prediction.volume.array, fine)


def test_the_nearest_prompts_serve() -> None:
    labels = random_labels((4, 4, 9), 2)
    backend = LookUp(4)
    Predictor(backend, n_prompts=1, block=2).predict_volume(shows_itself(labels), solved(
        np.roll(labels, 1, axis=0), slices=(0, 8)), plane=2, window=GREYS)
    assert [len(queries) for queries in backend.queries] == [2, 2, 1, 2, 2]  # slice 4 is nearer to none
    assert len(backend.prompts) == 2


def test_every_prompt_is_encoded_once_for_every_group() -> None:
    labels = random_labels((8, 8, 20), 40)
    labels[0, :, :] = labels[:, 0, :] = 40
    backend = LookUp(8)
    predictor = Predictor(backend, n_prompts=3, cached_prompts=1, block=2)
    predictor.predict_volume(shows_itself(labels), [solved(np.roll(labels, 1, axis=0)), solved(labels.copy())],
                             plane=2, window=GREYS)
    assert len(backend.prompts) == 2 * 20 * 3


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    recent: Recent[str] = Recent(2)
    made: list[str] = []

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key)

    for key in "abacab":
        assert get(key) == key
    assert made == ["a", "b", "c", "b"]


# --- slices ---


def support(n: int = 5, size: int = 16) -> Support:
    labels = random_labels((n, size, size), 3)
    return Support(tuple(Prompt(label / 255, label, f"s{k}", k / n) for k, label in enumerate(labels)),
                   Task.segmentation())


def test_slices_come_back_in_the_order_they_were_given() -> None:
    labels = random_labels((7, 16, 16), 3, seed=1)
    predictor = Predictor(LookUp(), block=3)
    positions = [0.9, 0.1, 0.5, 0.9, 0.2, 0.0, 1.0]
    found, confidence = predictor.predict_slices(labels / 255, support(), positions)
    np.testing.assert_array_equal(found, labels)
    assert confidence is not None
    assert confidence.min() > 0.9
    np.testing.assert_array_equal(predictor.predict_slices(labels / 255, support())[0], labels)
    assert predictor.predict_slices(labels[:0] / 255, support())[0].shape == (0, 16, 16)


def test_slices_beside_empty_prompts_are_background() -> None:
    empty = Support((Prompt(np.ones((16, 16)), np.zeros((16, 16), np.uint8)),), Task.segmentation())
    found, confidence = Predictor(Constant()).predict_slices(np.ones((2, 16, 16)), empty)
    assert confidence is not None
    assert found.shape == (2, 16, 16)
    assert (not found.any(), (confidence == 1).all()) == (True, True)


def test_slices_of_images() -> None:
    images = np.random.default_rng(0).random((9, 16, 16), np.float32)
    prompt = Prompt(images[0], images[1])
    painted, confidence = Predictor(Inverse()).predict_slices(images, Support((prompt,), Task.denoising()))
    np.testing.assert_allclose(painted, 1 - images, atol=1e-6)
    assert confidence is None


@pytest.mark.parametrize(
    ("queries", "positions", "message"),
    [
        (np.zeros((2, 16, 8)), None, r"queries must be \(N, 16, 16\) as the prompts are, got \(2, 16, 8\)"),
        (np.zeros((16, 16)), None, r"got \(16, 16\)"),
        (np.full((2, 16, 16), np.nan), None, r"must lie in \[0, 1\], got nan"),
        (np.full((2, 16, 16), 1.1), None, r"must lie in \[0, 1\], got 1.1 to 1.1"),
        (np.zeros((2, 16, 16)), [0.5], "2 queries came with 1 positions"),
    ],
)
def test_wrong_slices_are_refused(queries: np.ndarray, positions: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(LookUp()).predict_slices(queries, support(), positions)


@pytest.mark.parametrize("setting", ["n_prompts", "cached_prompts", "block"])
def test_settings_are_at_least_one(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        Predictor(LookUp(), **{setting: 0})  # type: ignore[arg-type]


# --- what is refused, and what is warned of ---


def simple() -> tuple[Volume, Reference]:
    labels = random_labels((8, 8, 4), 2)
    return volume(np.random.default_rng(0).random((8, 8, 4))), solved(labels)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8, 4), np.nan), "'query' holds 256 NaN/Inf voxels"),
        (np.full((8, 8, 4), 7), r"the query is constant \(7 everywhere\)"),
        (np.ones((8, 8, 4), bool), r"the query is constant \(True everywhere\)"),
    ],
)
def test_useless_queries_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(LookUp(8)).predict_volume(volume(array), simple()[1])


def test_useless_references_are_refused() -> None:
    query, reference = simple()
    predictor = Predictor(LookUp(8))
    with pytest.raises(ValueError, match="no reference given"):
        predictor.predict_volume(query, [])
    with pytest.raises(ValueError, match="no solved slice"):
        predictor.predict_volume(query, Reference(reference.image, reference.label, slices=()))
    with pytest.raises(ValueError, match=r"holds fractions such as 0\.5"):
        predictor.predict_volume(query, Reference(reference.image, volume(np.full((8, 8, 4), 0.5))))
    with pytest.raises(GeometryError, match="unknown plane 'frontal'"):
        predictor.predict_volume(query, reference, plane="frontal")
    flat = Reference(query, volume(np.full((8, 8, 4), 2.0)), "ct")
    with pytest.raises(ValueError, match="ct label is constant"):
        predictor.predict_volume(query, flat, Task.synthesis())


def test_pictures_of_bits_can_be_queried() -> None:
    labels = random_labels((8, 8, 4), 1)
    found = Predictor(Threshold(8)).predict_volume(volume(labels.astype(bool)), solved(labels))
    np.testing.assert_array_equal(found.volume.array, labels)


def test_another_modality_is_warned_of() -> None:
    query, reference = simple()
    ct = volume(query.array * 2000 - 1000)
    with pytest.warns(PredictionWarning, match="the query looks like CT, mr like not CT"):
        found = Predictor(LookUp(8)).predict_volume(ct, Reference(reference.image, reference.label, "mr"))
    assert len(found.provenance["warnings"]) == 1
    with pytest.warns(PredictionWarning, match="the query looks like not CT, reference like CT"):
        Predictor(LookUp(8)).predict_volume(query, Reference(ct, reference.label))


# --- the report ---


def test_progress_counts_the_slices() -> None:
    query, reference = simple()
    seen: list[tuple[int, int]] = []
    Predictor(LookUp(8), n_prompts=ALL, block=3).predict_volume(
        query, reference, plane=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 8), (6, 8), (8, 8)]


def test_the_report_is_json() -> None:
    query, reference = simple()
    numbered: Any = {np.int64(1): "liver"}
    found = Predictor(LookUp(8)).predict_volume(query, reference, Task.segmentation(numbered), plane=2)
    report = json.loads(json.dumps(found.provenance, allow_nan=False))
    assert report == found.provenance
    assert (report["task"], report["labels"], report["plane"]) == ("segmentation", {"1": "liver"}, "axial")
    assert (report["slices"], report["network_size"], report["pixel_spacing_mm"]) == (4, 8, 1)
    assert (report["backend"], report["checkpoint_sha256"], report["warnings"]) == ("oracle", "0123", [])
    assert report["prompts"][1] == {"reference": "reference", "slice": 1, "relative_position": 0.3333}
    assert set(report["versions"]) == {"mvg-core", "python", "numpy"}
    assert report["seconds"] >= 0
    assert IntensityScaling.from_json(report["intensity"]).kind == "percentile"


def test_nothing_heavy_is_loaded_and_without_a_backend_one_line_says_what_to_install() -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxruntime", "monai"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import numpy as np
sys.path[:0] = ["tests"]
from test_predict import LookUp, random_labels, shows_itself, solved
from mvg_core.predict import Predictor
labels = random_labels((8, 8, 4), 3)
found = Predictor(LookUp(8), n_prompts=9).predict_volume(shows_itself(labels), solved(labels.copy()), window=(0, 255))
assert (found.volume.array == labels).all()
assert not {"torch", "onnxruntime", "monai", "scipy"} & set(sys.modules)
for backend in ("auto", "torch", "onnx"):
    try:
        Predictor.load(backend=backend)
    except RuntimeError as error:
        print(type(error).__name__, error)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    neither, torch, onnx = finished.stdout.splitlines()
    assert neither.startswith("MissingBackendError neither PyTorch nor ONNX Runtime is installed")
    assert "pip install 'mvg-core[torch]'" in neither
    assert torch.startswith("MissingBackendError PyTorch is not installed")
    assert onnx.startswith("MissingBackendError ONNX Runtime is not installed")
    assert "pip install 'mvg-core[onnx]'" in onnx


# --- image to image ---


def pair(query: Volume) -> Reference:
    return Reference(query, query)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64, np.int32])
def test_denoising_answers_in_the_units_of_the_query(dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(dtype)
    found = Predictor(Inverse()).predict_volume(volume(array), pair(volume(array)), Task.denoising(), window=GREYS)
    np.testing.assert_allclose(found.volume.array, 255 - array.astype(float), atol=1e-3)
    assert found.volume.array.dtype == (np.float64 if dtype in (np.float64, np.int32) else np.float32)
    assert found.confidence is None
    assert volume(array).array.min() == array.min()  # the query itself is not written to


def test_denoising_leaves_what_the_window_cannot_show() -> None:
    array = np.random.default_rng(0).uniform(-1000, 1000, (16, 16, 3))
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = -1024.125, 3071.3, 1000
    found = Predictor(Inverse()).predict_volume(volume(array), pair(volume(array)), Task.denoising()).volume.array
    assert (found[0, 0, 0], found[1, 1, 1]) == (-1024.125, 3071.3)
    shown = np.abs(array) <= 1000
    np.testing.assert_allclose(found[shown], -array[shown], atol=1e-3)  # CT from air to bone


def test_images_keep_their_own_resolution() -> None:
    array = np.random.default_rng(0).random((40, 40, 2)).astype(np.float32)
    backend = Copy(32)
    found = Predictor(backend).predict_volume(spaced(array, 0.7, 0.7, 3), pair(spaced(array, 0.7, 0.7, 3)),
                                              Task.denoising(), window=(0, 1))
    assert (found.provenance["network_size"], found.provenance["pixel_spacing_mm"]) == (48, 0.7)
    np.testing.assert_allclose(found.volume.array, array, atol=1e-6)
    picture = volume(array[..., :1])
    found = Predictor(backend).predict_volume(picture, pair(picture), Task.denoising(), window=(0, 1))
    np.testing.assert_allclose(found.volume.array, array[..., :1], atol=1e-6)
    np.testing.assert_array_equal(backend.prompts[-1][0], backend.queries[-1][0])
    fine = spaced(np.random.default_rng(0).random((48, 48, 2)), 0.4, 0.4, 3)  # 19.2 mm / 0.4 mm is a bit more than 48
    found = Predictor(backend).predict_volume(fine, pair(fine), Task.denoising(), window=(0, 1))
    assert found.provenance["network_size"] == 48


def test_fewer_slices_are_painted_at_once_where_they_are_larger() -> None:
    array = np.random.default_rng(0).random((48, 48, 7))
    backend = Copy(32)
    reference = Reference(volume(array), volume(array), slices=(0,))
    Predictor(backend, block=8).predict_volume(volume(array), reference, Task.denoising(), window=(0, 1))
    assert [len(queries) for queries in backend.queries] == [3, 3, 1]  # 8 x 32 x 32 / (48 x 48) = 3.6


def test_images_keep_their_resolution_beside_a_larger_reference_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    query, large = (volume(np.random.default_rng(0).random((side, side, 2))) for side in (40, 100))
    predictor = Predictor(Copy(32))
    found = predictor.predict_volume(query, pair(large), Task.denoising(), window=(0, 1))
    assert (found.provenance["network_size"], found.provenance["pixel_spacing_mm"]) == (112, 1)
    np.testing.assert_allclose(found.volume.array, query.array, atol=1e-6)
    monkeypatch.setattr("mvg_core.image_painter.ColourPainter.largest", 80)
    found = predictor.predict_volume(query, pair(large), Task.denoising(), window=(0, 1))
    assert (found.provenance["network_size"], found.provenance["pixel_spacing_mm"]) == (80, 1.25)
    small = volume(np.random.default_rng(0).random((16, 16, 2)))
    assert predictor.predict_volume(small, pair(small), Task.denoising()).provenance["network_size"] == 32


def test_synthesis_answers_in_the_units_of_the_target() -> None:
    rng = np.random.default_rng(0)
    query, image = volume(rng.uniform(0, 1000, (16, 16, 3))), volume(rng.uniform(0, 10, (16, 16, 3)))
    target = volume(rng.uniform(-1000, 500, (16, 16, 3)))  # a CT: its fixed window is -1000 to 1000
    found = Predictor(Copy()).predict_volume(query, Reference(image, target), Task.synthesis())
    expected = IntensityScaling.for_volume(query.array).apply(query.array) * 2000 - 1000
    np.testing.assert_allclose(found.volume.array, expected, atol=0.01)
    assert found.volume.array.dtype == np.float32


def with_hole(side: int = 16, dtype: type = np.float64) -> tuple[Volume, Volume, np.ndarray]:
    array = np.random.default_rng(0).uniform(10, 1000, (side, side, 5)).astype(dtype)
    hole = np.zeros(array.shape, np.uint8)
    hole[4:9, 5:11, 1:3] = 1
    return volume(array), volume(hole), hole > 0


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("size", [16, 32])
def test_inpainting_changes_the_hole_and_nothing_else(dtype: type, size: int) -> None:
    query, hole, inside = with_hole(dtype=dtype)
    seen: list[tuple[int, int]] = []
    backend = Constant(size)
    found = Predictor(backend).predict_volume(query, pair(query), Task.inpainting(), hole=hole, window=(0, 1500),
                                              progress=lambda *at: seen.append(at)).volume.array
    assert (found[inside] == 1500).all()
    np.testing.assert_array_equal(found[~inside], query.array[~inside])
    assert found.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert seen == [(1, 2), (2, 2)]  # slices without a hole are not painted
    for shown in np.concatenate(backend.queries):
        assert (shown == 0).sum() == 30 * (size // 16) ** 2  # black with sharp edges, as in training


@pytest.mark.parametrize("size", [16, 24])
def test_what_a_hole_hides_is_never_looked_at(size: int) -> None:
    query, hole, inside = with_hole()
    found = []
    for hidden in (0.0, 1e6, np.nan, np.inf, -2000.0):
        array = query.array.copy()
        array[inside] = hidden
        backend = Copy(size)
        prediction = Predictor(backend).predict_volume(volume(array), pair(query), Task.inpainting(), hole=hole)
        found.append((prediction.volume.array, np.concatenate(backend.queries)))
    for answer, shown in found[1:]:
        np.testing.assert_array_equal(answer, found[0][0])
        np.testing.assert_array_equal(shown, found[0][1])


def test_prompts_from_the_query_are_scaled_as_the_query_is() -> None:
    query, hole, inside = with_hole()
    query.array[inside] = 1e6
    backend = Copy()
    Predictor(backend).predict_volume(query, pair(query), Task.inpainting(), hole=hole)
    assert np.median(backend.prompts[0][0]) == pytest.approx(np.median(backend.queries[0]), abs=0.15)


def test_holes_must_fit() -> None:
    query, hole, _ = with_hole()
    predictor = Predictor(Copy())
    with pytest.raises(ValueError, match="inpainting needs a hole"):
        predictor.predict_volume(query, pair(query), Task.inpainting())
    with pytest.raises(ValueError, match="a hole belongs to inpainting, not to denoising"):
        predictor.predict_volume(query, pair(query), Task.denoising(), hole=hole)
    with pytest.raises(GeometryError, match=r"the hole \(shape \(16, 16, 5\)\) must lie on the query's grid"):
        predictor.predict_volume(query, pair(query), Task.inpainting(), hole=spaced(hole.array, 1, 1, 2))
    with pytest.raises(ValueError, match="the hole is empty"):
        predictor.predict_volume(query, pair(query), Task.inpainting(), hole=hole.with_array(hole.array * 0))
    with pytest.raises(ValueError, match="the hole covers the whole query"):
        predictor.predict_volume(query, pair(query), Task.inpainting(), hole=hole.with_array(hole.array * 0 + 1))
    broken = query.with_array(np.where(np.arange(5) == 4, np.nan, query.array))
    with pytest.raises(ValueError, match="'query' holds 256 NaN"):
        predictor.predict_volume(broken, pair(query), Task.inpainting(), hole=hole)


# --- memory ---


def extra_bytes(n_slices: int, task: Task) -> float:
    """Memory beyond inputs and outputs at its peak, for 512 x 512 slices, some ten MB each as float64."""
    ramp = np.arange(512 * 512, dtype=np.int16).reshape(512, 512, 1) % 1000
    query = volume(np.repeat(ramp, n_slices, axis=2) + np.arange(n_slices, dtype=np.int16))
    image = volume(np.asfortranarray(query.array[:, ::-1].astype(np.float32)))
    label = volume((image.array > 500).astype(np.float32)) if task.is_segmentation else image
    hole = volume(np.asarray(query.array > 900)) if task.kind == "inpainting" else None
    predictor = Predictor(Threshold(32), n_prompts=1)
    tracemalloc.start()
    found = predictor.predict_volume(query, Reference(image, label), task, plane=2, hole=hole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    outputs = [found.volume.array] + ([found.confidence.array] if found.confidence else [])
    return peak - sum(array.nbytes for array in outputs)


def test_memory_does_not_grow_with_the_number_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvg_core.image_painter.ColourPainter.largest", 32)
    for task, bytes_per_voxel in ((Task.segmentation(), 1), (Task.denoising(), 0), (Task.synthesis(), 0)):
        few, many = (extra_bytes(n_slices, task) for n_slices in (17, 34))
        # A label map of real numbers is kept as bytes; nothing else is.
        assert (many - few) / (17 * 512 * 512) < bytes_per_voxel + 0.2

"""Whole volumes from image to image: exact where nothing is to change, in the query's units, at full resolution."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mvg_core.engine import images
from mvg_core.engine.images import OFF, Consistency, solve_images, spread
from mvg_core.engine.seams import smooth_across, without_seam
from mvg_core.engine.watch import Cancelled, Watch
from mvg_core.evaluation.flicker import Flicker, flicker
from mvg_core.predict import PredictionWarning, Predictor
from mvg_core.references import Reference
from mvg_core.slices import SlicePlan
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, GeometryError, Volume

FADE = Consistency("crossfade", fade_slices=4)
EVERY = [OFF, Consistency("fixed"), FADE, Consistency(anchors=2, seamless=True, smooth=True)]
RNG = np.random.default_rng(0)


class Recorder:
    """What all networks here share: they remember what they were given."""

    name, checkpoint_sha256 = "oracle", "0123"

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.card: dict[str, Any] = {}
        self.prompts: list[tuple[np.ndarray, np.ndarray]] = []
        self.queries: list[np.ndarray] = []

    def encode(self, image: np.ndarray, label: np.ndarray) -> Any:
        self.prompts.append((image.copy(), label.copy()))
        return [(image, label)]

    def merge(self, encoded: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        return [pair for each in encoded for pair in each]

    def paint(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        assert queries.dtype == np.float32
        self.queries.append(queries.copy())
        return np.repeat(self.answer(queries, encoded)[..., None], 3, axis=-1)

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return queries


class Inverse(Recorder):
    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return 1 - queries


class LevelOfPrompts(Recorder):
    """Everywhere the mean of the prompts' labels: what flickers where prompts change."""

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return np.full_like(queries, np.mean([label.mean() for _, label in encoded]))


class MeanOfQuery(Recorder):
    """Everywhere the mean of the slice, which is another one for every slice."""

    def answer(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        return np.broadcast_to(queries.mean(axis=(1, 2), keepdims=True), queries.shape)


def volume(array: np.ndarray, *spacing_mm: float) -> Volume:
    return Volume(array, Geometry(array.shape, np.diag([*(spacing_mm or (1, 1, 1)), 1.0])))


def pair(query: Volume) -> Reference:
    return Reference(query, query)


def other(shape: tuple[int, int, int] = (16, 16, 9)) -> Reference:
    image = volume(np.random.default_rng(1).random(shape))
    return Reference(image, image, "other")


# --- exact where nothing is to change ---


@pytest.mark.parametrize("consistency", EVERY)
@pytest.mark.parametrize("tiling", [None, "auto", 16])
@pytest.mark.parametrize("shape", [(40, 40, 5), (23, 40, 3), (40, 40, 1)])
def test_a_network_that_copies_gives_the_volume_back(consistency: Consistency, tiling: images.Tiles,
                                                     shape: tuple[int, int, int]) -> None:
    query = volume(RNG.random(shape).astype(np.float32), 0.7, 0.7, 3)
    found = solve_images(Predictor(Recorder(16)), query, pair(query), Task.denoising(), window=(0, 1), tiling=tiling,
                         consistency=consistency)
    np.testing.assert_allclose(found.volume.array, query.array, atol=1e-6)
    assert found.volume.geometry is query.geometry
    assert found.confidence is None
    assert found.provenance["tile_size"] == (16 if tiling == 16 else None)
    assert found.provenance["consistency"]["prompts"] == consistency.prompts
    json.dumps(found.provenance)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_answers_are_in_the_units_of_the_query(dtype: type) -> None:
    array = RNG.integers(0, 256, (16, 16, 6)).astype(dtype)
    for consistency in EVERY:
        found = solve_images(Predictor(Inverse()), volume(array), pair(volume(array)), Task.denoising(),
                             window=(0, 255), consistency=consistency)
        np.testing.assert_allclose(found.volume.array, 255 - array.astype(float), atol=1e-3)
        assert found.volume.array.dtype == (np.float64 if dtype is np.float64 else np.float32)


def test_denoising_leaves_what_the_window_cannot_show() -> None:
    array = RNG.uniform(-1000, 1000, (16, 16, 3))
    array[0, 0, 0], array[1, 1, 1] = -1024.125, 3071.3
    found = solve_images(Predictor(Inverse()), volume(array), pair(volume(array)), Task.denoising()).volume.array
    assert (found[0, 0, 0], found[1, 1, 1]) == (-1024.125, 3071.3)
    shown = np.abs(array) <= 1000
    np.testing.assert_allclose(found[shown], -array[shown], atol=1e-3)


def test_synthesis_answers_in_the_units_of_the_target() -> None:
    query = volume(RNG.uniform(0, 1000, (16, 16, 5)))
    target = volume(RNG.uniform(-1000, 500, (16, 16, 5)))  # a CT: its fixed window is -1000 to 1000
    image = volume(RNG.uniform(0, 10, (16, 16, 5)))
    found = solve_images(Predictor(Recorder()), query, Reference(image, target), Task.synthesis(), window=(0, 1000))
    np.testing.assert_allclose(found.volume.array, query.array * 2 - 1000, atol=0.01)


def test_as_predict_volume_does_it_when_all_is_off() -> None:
    query, reference = volume(RNG.random((40, 31, 7))), other((20, 24, 5))
    predictor = Predictor(LevelOfPrompts(16))
    for task in (Task.denoising(), Task.synthesis()):
        plain = predictor.predict_volume(query, reference, task).volume.array
        found = solve_images(predictor, query, reference, task, tiling=None, consistency=OFF).volume.array
        np.testing.assert_allclose(found, plain, atol=1e-6)


# --- holes ---


def with_hole(dtype: type = np.float64) -> tuple[Volume, Volume, np.ndarray]:
    array = np.random.default_rng(0).uniform(10, 1000, (40, 40, 5)).astype(dtype)
    hole = np.zeros(array.shape, np.uint8)
    hole[4:19, 5:21, 1:4] = 1
    return volume(array), volume(hole), hole > 0


@pytest.mark.parametrize("consistency", EVERY)
@pytest.mark.parametrize("tiling", [None, 16])
def test_inpainting_changes_the_hole_and_nothing_else(consistency: Consistency, tiling: int | None) -> None:
    query, hole, inside = with_hole(np.int16)
    backend = Inverse(16)
    found = solve_images(Predictor(backend), query, pair(query), Task.inpainting(), hole=hole, window=(0, 1500),
                         tiling=tiling, consistency=consistency).volume.array
    np.testing.assert_array_equal(found[~inside], query.array[~inside])
    assert (found[inside] != query.array[inside]).all()


@pytest.mark.parametrize("consistency", EVERY)
@pytest.mark.parametrize("tiling", [None, 16])
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 0.6, 3)])  # the second is resampled
def test_what_a_hole_hides_is_never_looked_at(consistency: Consistency, tiling: int | None,
                                              spacing_mm: tuple[float, ...]) -> None:
    query, hole, inside = with_hole()
    query, hole = volume(query.array, *spacing_mm), volume(hole.array, *spacing_mm)
    found = []
    for hidden in (0.0, 1e6, np.nan):
        array = np.where(inside, hidden, query.array)
        backend = Recorder(16)
        prediction = solve_images(Predictor(backend), query.with_array(array), pair(query), Task.inpainting(),
                                  hole=hole, tiling=tiling, consistency=consistency)
        found.append((prediction.volume.array, np.concatenate(backend.queries)))
    for answer, shown in found[1:]:
        np.testing.assert_array_equal(answer, found[0][0])
        np.testing.assert_array_equal(shown, found[0][1])


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 0.6, 3)])
def test_what_is_mostly_hole_is_shown_black(spacing_mm: tuple[float, ...]) -> None:
    query, hole, _ = with_hole()
    query, hole = volume(query.array, *spacing_mm), volume(hole.array, *spacing_mm)
    backend = Recorder(16)
    found = solve_images(Predictor(backend), query, pair(query), Task.inpainting(), hole=hole, window=(-1000, 1000))
    plan = SlicePlan.for_volume(query.geometry, 2, size=found.provenance["network_size"],
                                spacing_mm=found.provenance["pixel_spacing_mm"])
    shown, hidden = np.concatenate(backend.queries), plan.extract_label(hole.array, [1, 2, 3]) > 0
    assert hidden.any()
    assert (shown[hidden] == 0).all()  # also where a pixel shows a bit of what is not hidden


def test_a_seam_is_taken_out_of_the_hole() -> None:
    truth = np.tile(np.linspace(0.2, 0.6, 40, dtype=np.float32), (40, 1))
    hole = np.zeros((40, 40), bool)
    hole[10:30, 12:28] = True
    shading = np.linspace(0.1, -0.1, 40, dtype=np.float32)[:, None]  # too bright above, too dark below
    painted = truth + shading
    hidden = np.where(hole, np.float32(np.nan), truth)
    found = without_seam(painted, hidden, hole)
    np.testing.assert_array_equal(found[~hole], painted[~hole])
    edge = hole & ~np.pad(hole, 1)[2:, 1:-1]
    assert np.abs(found - truth)[edge].max() < 0.02 < np.abs(painted - truth)[edge].max()
    assert np.abs(found - truth)[hole].mean() < 0.3 * np.abs(painted - truth)[hole].mean()


def test_a_hole_that_leaves_no_rim_is_left_as_painted() -> None:
    painted = RNG.random((5, 5)).astype(np.float32)
    np.testing.assert_array_equal(without_seam(painted, painted * 0, np.ones((5, 5), bool)), painted)


def test_corrected_holes_stay_within_the_scale() -> None:
    hole = np.zeros((9, 9), bool)
    hole[3:6, 3:6] = True
    painted = np.where(hole, 0.9, 0.2).astype(np.float32)
    assert without_seam(painted, np.ones_like(painted), hole).max() <= 1


def test_neighbours_in_a_hole_are_averaged_by_their_distance() -> None:
    image, hole = np.zeros((1, 3, 5)), np.zeros((1, 3, 5), bool)
    image[0, 0] = [9, 4, 1, 7, 9]
    hole[0, 0, 1:4] = True
    image[0, 1, 2], hole[0, 1, 2] = 3, True  # alone in its column
    smooth_across(image, hole, 2, spacing_mm=5)
    w = np.exp(-0.5)
    expected = [9, (4 + w) / (1 + w), (1 + 11 * w) / (1 + 2 * w), (7 + w) / (1 + w), 9]
    np.testing.assert_allclose(image[0, 0], expected)
    assert image[0, 1, 2] == 3
    query, hole_2, inside = with_hole()
    plain, smooth = (solve_images(Predictor(MeanOfQuery()), query, pair(query), Task.inpainting(), hole=hole_2,
                                  consistency=Consistency(smooth=each)).volume.array for each in (False, True))
    assert (np.abs(np.diff(plain[10, 10, 1:4])) > 1).all()
    weight = np.exp(-0.5 / 25)  # slices 1 mm apart
    expected = (plain[..., 2] + weight * (plain[..., 1] + plain[..., 3])) / (1 + 2 * weight)
    np.testing.assert_allclose(smooth[..., 2][inside[..., 2]], expected[inside[..., 2]], rtol=1e-5)
    far = np.where(hole, np.arange(5.0), 0).astype(np.float32)
    before = far.copy()
    smooth_across(far, hole, 2, spacing_mm=50)
    np.testing.assert_allclose(far, before, atol=1e-6)


# --- slices agree ---


def levels(consistency: Consistency | None, n_slices: int = 17, **settings: Any) -> np.ndarray:
    """Mean of every slice where prompts of alternating levels serve."""
    query = volume(RNG.random((16, 16, n_slices)))
    target = np.zeros((16, 16, n_slices)) + np.arange(n_slices) % 2
    reference = Reference(volume(RNG.random((16, 16, n_slices))), volume(target))
    found = solve_images(Predictor(LevelOfPrompts(), n_prompts=1, **settings), query, reference, Task.synthesis(),
                         consistency=consistency)
    return found.volume.array.mean(axis=(0, 1))


def test_fixed_prompts_do_not_flicker_and_fading_ones_change_slowly() -> None:
    jumps = {name: np.abs(np.diff(levels(consistency))).max() for name, consistency in {
        "off": OFF, "fixed": Consistency("fixed"), "fade": Consistency("crossfade", fade_slices=5)}.items()}
    assert jumps["off"] == 1
    assert jumps["fixed"] == 0
    assert 0 < jumps["fade"] <= 1 / 5 + 1e-5
    assert np.abs(np.diff(levels(None))).max() == 0  # what synthesis does if nothing is said


def test_anchors_serve_every_slice() -> None:
    alone, anchored = levels(OFF), levels(Consistency(anchors=3))
    assert np.abs(np.diff(anchored)).max() <= 0.5 < np.abs(np.diff(alone)).max()


def test_flicker_is_measured_against_the_truth() -> None:
    truth = np.zeros((2, 2, 5)) + np.array([0, 0.1, 0, 0.1, 0])  # second differences: 0.2
    assert flicker(truth, truth, 2) == Flicker(0, 0)
    assert flicker(truth + 0.3, truth, 2).jumps == pytest.approx(0)  # equally wrong everywhere
    jumping = truth + np.array([0.1, 0, 0, 0, 0.1])  # 0.1, 0, 0.1
    assert flicker(jumping, truth, 2).detail == pytest.approx(1 / 3)
    assert flicker(jumping, truth, 2).jumps == pytest.approx(0.2 / 3)
    grainy = truth + np.array([[0.1, -0.1], [-0.1, 0.1]])[..., None] * (-1) ** np.arange(5)  # 0.4, mean 0
    assert flicker(grainy, truth, 2).detail == pytest.approx(2)
    assert flicker(grainy, truth, 2).jumps == pytest.approx(0)
    where = np.zeros(truth.shape, bool)
    where[0, 0, 1:4] = True
    assert flicker(jumping, truth, 2, where).detail == 0
    with pytest.raises(ValueError, match="no three slices in a row"):
        flicker(truth, truth, 2, where & (np.arange(5) > 1))
    with pytest.raises(ValueError, match="different shapes"):
        flicker(truth, truth[..., :4], 2)


@pytest.mark.parametrize("n_slices", [1, 2, 3, 10])
@pytest.mark.parametrize("block", [1, 3])
def test_fading_shares_sum_to_one(n_slices: int, block: int) -> None:
    query = volume(RNG.random((16, 16, n_slices)))
    found = solve_images(Predictor(Recorder(), block=block), query, other(), Task.denoising(), window=(0, 1),
                         consistency=FADE)
    np.testing.assert_allclose(found.volume.array, query.array, atol=1e-6)


def test_slices_of_the_query_itself_serve_their_neighbours() -> None:
    assert Consistency.for_task(Task.synthesis()).prompts == "fixed"
    assert Consistency.for_task(Task.synthesis(), has_own_prompts=True) == Consistency.for_task(Task.denoising()) == OFF
    query = volume(RNG.random((16, 16, 9)))
    target = volume(np.zeros((16, 16, 9)) + np.arange(9) / 8)
    found = solve_images(Predictor(LevelOfPrompts(), n_prompts=1), query, Reference(query, target, slices=(0, 8)),
                         Task.synthesis())
    means = found.volume.array.mean(axis=(0, 1))
    assert means[0] == means[3] != means[5] == means[8]


def test_spread_prompts_are_evenly_spread() -> None:
    positions = [k / 10 for k in range(11)]
    assert spread(positions, 0, 1, 2) == (2, 7)
    assert spread(positions, 0.5, 1, 1) == (7,)
    assert spread([0.4], 0, 1, 3) == (0,)


# --- larger than the network's field ---


def test_large_images_are_painted_in_tiles_at_their_own_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvg_core.image_painter.ColourPainter.largest", 64)
    monkeypatch.setattr(images, "TILE", 32)
    query = volume(RNG.random((100, 80, 3)).astype(np.float32), 0.5, 0.5, 3)
    backend = Recorder(16)
    reference = other((120, 90, 4))
    reference = Reference(reference.image, volume(np.clip(reference.image.array * 1.2 - 0.1, 0, 1)))
    found = solve_images(Predictor(backend), query, reference, Task.synthesis(), window=(0, 1))
    low, high = np.percentile(reference.label.array, (0.5, 99.5))
    np.testing.assert_allclose(found.volume.array, query.array * (high - low) + low, atol=1e-5)
    assert found.provenance["tile_size"] == 32
    assert found.provenance["pixel_spacing_mm"] == 0.5
    assert {shown.shape[1:] for shown in backend.queries} == {(32, 32)}
    choices: list[tuple[Task, images.Tiles]] = [(Task.synthesis(), None), (Task.denoising(), "auto")]
    for task, tiling in choices:
        coarse = solve_images(Predictor(Recorder(16)), query, reference, task, window=(0, 1), tiling=tiling)
        assert coarse.provenance["network_size"] == 64
        assert np.abs(coarse.volume.array - found.volume.array).max() > 0.1  # what full resolution is for


@pytest.mark.parametrize("limit", [32, 512])
def test_tiles_are_shown_the_same_place_of_the_prompts(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvg_core.image_painter.ColourPainter.largest", limit)
    query = volume(RNG.uniform(0.3, 1, (48, 48, 2)).astype(np.float32))
    backend = Recorder(16)
    solve_images(Predictor(backend, n_prompts=1, block=8), query, Reference(query, query, slices=(0,)),
                 Task.denoising(), window=(0, 1), tiling=32)
    assert len(backend.prompts) == len(backend.queries) == 4
    for (prompt, _), shown in zip(backend.prompts, backend.queries, strict=True):
        np.testing.assert_array_equal(prompt, shown[0])


# --- watching, and what is refused ---


@pytest.mark.parametrize("consistency", [OFF, FADE])
def test_progress_is_told_and_slices_are_shown(consistency: Consistency) -> None:
    query = volume(RNG.random((16, 16, 6)))
    seen: list[tuple[int, int]] = []
    shown: dict[int, np.ndarray] = {}
    watch = Watch(lambda *at: seen.append(at), None, lambda number, answer: shown.update({number: answer.copy()}))
    found = solve_images(Predictor(Inverse(), block=2), query, other(), Task.denoising(), window=(0, 1), watch=watch,
                         consistency=consistency)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] >= 6
    assert sorted(shown) == list(range(6))
    for number, answer in shown.items():
        np.testing.assert_array_equal(answer, found.volume.array[:, :, number])


@pytest.mark.parametrize("task", [Task.denoising(), Task.synthesis()])
def test_a_cancelled_volume_keeps_the_slices_that_are_done(task: Task) -> None:
    query, done = volume(RNG.random((16, 16, 6))), []
    watch = Watch(cancelled=lambda: len(done) >= 2, painted=lambda number, _: done.append(number))
    with pytest.raises(Cancelled) as caught:
        solve_images(Predictor(Inverse(), block=1), query, other(), task, window=(0, 1), watch=watch)
    partial = caught.value.partial.volume.array
    assert len(done) == 2
    scale = 1.0 if task.kind == "denoising" else np.ptp(partial[:, :, done]) / np.ptp(query.array[:, :, done])
    np.testing.assert_allclose(np.diff(partial[:, :, done], axis=0), -scale * np.diff(query.array[:, :, done], axis=0),
                               atol=2e-2)
    waiting = [number for number in range(6) if number not in done]
    rest = query.array[:, :, waiting] if task.kind == "denoising" else partial.min()
    np.testing.assert_allclose(partial[:, :, waiting], rest)


def test_useless_settings_are_refused() -> None:
    query = volume(RNG.random((16, 16, 3)))
    predictor = Predictor(Recorder())
    with pytest.raises(ValueError, match="a segmentation does not paint an image"):
        solve_images(predictor, query, pair(query), Task.segmentation())
    with pytest.raises(ValueError, match="no reference given"):
        solve_images(predictor, query, [], Task.denoising())
    for tiling in (0, 20):
        with pytest.raises(ValueError, match=f"multiple of 16, got {tiling}"):
            solve_images(predictor, query, pair(query), Task.denoising(), tiling=tiling)
    with pytest.raises(ValueError, match="prompts 'some' is unknown: use one of nearest, fixed, crossfade"):
        Consistency("some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fade_slices must be at least 1, got 0"):
        Consistency(fade_slices=0)
    with pytest.raises(ValueError, match="anchors must be at least 0, got -1"):
        Consistency(anchors=-1)
    with pytest.raises(GeometryError, match="must lie on the query's grid"):
        solve_images(predictor, query, pair(query), Task.inpainting(), hole=volume(np.ones((16, 16, 2), np.uint8)))
    with pytest.warns(PredictionWarning, match="looks like not CT, reference like CT"):
        solve_images(predictor, query, pair(volume(query.array * 2000 - 1000)), Task.denoising())

"""Only some slices of a volume are asked for: they get the same answer, the others none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine import WHOLE, Spectator, engine, labelled
from test_engine_parts import WeighingLookUp
from test_predict import GREYS, Inverse, random_labels, shows_itself, solved, volume
from tiny import write_weights
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.predict import Predictor
from mvg_core.references import Reference, only_slices, slice_range
from mvg_core.tasks import Task
from mvg_core.volume_io import read_volume, write_volume

PLAIN = EngineConfig.preset("plain", size=192)


@pytest.mark.parametrize(("slices", "n", "message"), [((3, 2), 9, "lower number first"), ((-1, 2), 9, "0 to 8"),
                                                      ((0, 9), 9, "0 to 8"), ((9, 9), 9, "0 to 8")])
def test_ranges_must_exist(slices: tuple[int, int], n: int, message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        slice_range(slices, n)


def test_a_range_includes_both_ends() -> None:
    assert list(slice_range((2, 4), 9)) == [2, 3, 4]
    assert list(slice_range(None, 3)) == [0, 1, 2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_is_kept_in_some_slices(axis: int) -> None:
    kept = np.moveaxis(only_slices(np.ones((4, 5, 6), bool), axis, range(1, 3)), axis, 0)
    assert kept[1:3].all()
    assert kept.sum() == kept[1:3].sum()


@pytest.mark.parametrize("slices", [(0, 0), (2, 2), (5, 7), (0, 8), (4, 4), (8, 8)])
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("config", [WHOLE, EngineConfig(focus=0, size=16, locate=False, memory=0, stop_after=0), PLAIN])
def test_what_is_asked_for_is_solved_and_nothing_else(slices: tuple[int, int], others: int,
                                                      config: EngineConfig) -> None:
    labels = random_labels((16, 16, 9), 3)
    query = shows_itself(labels)
    references = [labelled(query, labels, 4)] if not others else [solved(random_labels((16, 16, 9), 3, seed=1))]
    found = engine(WeighingLookUp(), config).solve(query, references, plane=2, window=GREYS, slices=slices)
    asked = set(range(slices[0], slices[1] + 1)) | ({4} if not others else set())
    for number in range(9):
        here = found.volume.array[..., number]
        np.testing.assert_array_equal(here, labels[..., number] if number in asked else 0)
        assert found.confidence is not None
        if number not in asked:
            assert not found.confidence.array[..., number].any()
    assert found.provenance["asked_slices"] == list(slices)
    assert set(found.provenance.get("slice_quality", {})) <= {str(number) for number in asked}


@pytest.mark.parametrize(("config", "painted"), [
    (WHOLE, [5, 6, 7, 8]),  # each learns from the one before
    (EngineConfig(focus=0, size=16, memory=0), [7, 8]),
])
def test_slices_on_the_way_are_painted_only_if_others_learn_from_them(config: EngineConfig, painted: list[int]) -> None:
    labels = random_labels((16, 16, 9), 3)
    query, spectator = shows_itself(labels), Spectator()
    engine(WeighingLookUp(), config).solve(query, labelled(query, labels, 4), plane=2, window=GREYS, slices=(7, 8),
                                           watch=spectator.watch)
    assert spectator.painted == painted
    assert spectator.was_told_all()
    assert spectator.told[-1] == (len(painted), len(painted))


@pytest.mark.parametrize("kind", ["denoising", "synthesis", "inpainting"])
def test_images_are_painted_in_the_range_only(kind: Any) -> None:
    image = np.random.default_rng(0).uniform(20, 200, (16, 16, 6)).astype(np.float32)
    query = volume(image)
    hole = volume(np.ones((16, 16, 6), np.uint8)) if kind == "inpainting" else None
    if hole is not None:
        hole.array[:8] = 0
    found = engine(Inverse()).solve(query, Reference(query, query), Task(kind), plane=2, hole=hole, slices=(2, 3),
                                    window=(0, 255)).volume.array
    for number in (0, 1, 4, 5):
        np.testing.assert_array_equal(found[..., number], found[..., 0] if kind == "synthesis" else image[..., number])
    assert (found[..., 2] != image[..., 2]).any()
    assert (found[..., 3] != image[..., 3]).any()
    alone = Predictor(Inverse()).predict_volume(query, Reference(query, query), Task(kind), plane=2, hole=hole,
                                                slices=(2, 3), window=(0, 255)).volume.array
    assert (alone[..., 1] == (0 if kind == "synthesis" else image[..., 1])).all()


def test_slices_without_the_hole_stay_as_they_are() -> None:
    query = volume(np.random.default_rng(0).uniform(20, 200, (16, 16, 6)).astype(np.float32))
    hole = volume(np.zeros((16, 16, 6), np.uint8))
    hole.array[4:8, 4:8, 2] = 1
    found = engine(Inverse()).solve(query, Reference(query, query), Task("inpainting"), plane=2, hole=hole,
                                    slices=(4, 5))
    np.testing.assert_array_equal(found.volume.array, query.array)


def test_the_command_line_names_a_range(tmp_path: Path) -> None:
    query, labels, weights = (str(tmp_path / name) for name in ("q.nii.gz", "l.nii.gz", "w.pt"))
    write_weights(Path(weights))
    rng = np.random.default_rng(0)
    label = np.zeros((24, 24, 8), np.uint8)
    label[8:16, 8:16, 1:7] = 1
    write_volume(volume(rng.uniform(0, 100, label.shape).astype(np.float32) + 300.0 * label), query)
    write_volume(volume(label), labels)
    call = ["predict", query, "--reference", query, labels, "--reference-slices", "3", "--task", "segmentation",
            "--weights", weights, "--plane", "axial", "--preset", "fast", "--output",
            str(tmp_path / "out.nii.gz"), "--overwrite"]
    for text, last in (("4-5", 5), ("4", 4)):
        result = CliRunner().invoke(app, [*call, "--slices", text])
        assert result.exit_code == 0, result.output
        found = read_volume(tmp_path / "out.nii.gz").array
        np.testing.assert_array_equal(found[..., 3], label[..., 3])
        assert not found[..., [0, 1, 2, *range(last + 1, 8)]].any()
    for text in ("5-4", "4-99", "a", "-3", "4-", ""):
        assert CliRunner().invoke(app, [*call, "--slices", text]).exit_code == 2


def test_a_library_call_says_which_slices_there_are() -> None:
    labels = random_labels((16, 16, 5), 2)
    query = shows_itself(labels)
    for config in (WHOLE, PLAIN):
        with pytest.raises(IndexError, match="0 to 4"):
            VolumeEngine(Predictor(WeighingLookUp()), config).solve(query, labelled(query, labels, 2), plane=2,
                                                                    slices=(3, 5))

"""What the engine reads: slices by all slices of references at once, and where structures lie in whole slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_predict import volume
from tiny import tiny_network

from mvg_core.backends import TorchBackend
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.engine.fields import Stack
from mvg_core.engine.judging import share_by_references
from mvg_core.engine.locating import DISAGREES, WHOLE, Located, locate
from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.reading import MOST_SLICES, ReferenceReading
from mvg_core.engine.subject import Subject
from mvg_core.intensity import IntensityScaling
from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import REDUCED, Ridge
from mvg_core.predict import Predictor
from mvg_core.reader_backends import Seen
from mvg_core.references import Reference
from mvg_core.registration import align
from mvg_core.volume import Volume


class BrightReader:
    """Knows nothing but how bright pixels are; a fitted readout of that tells bright structures from dark ones."""

    ridge, checkpoint_sha256 = Ridge(1e-4, 0.5), ""

    def look(self, images: np.ndarray) -> Seen:
        n, height, width = images.shape
        bright = images.reshape(n, height // REDUCED, REDUCED, width // REDUCED, REDUCED).mean(axis=(2, 4))
        return Seen(np.stack([bright, bright**2, np.ones_like(bright)], axis=1).astype(np.float32), None, None)

    def outlines(self, scores: np.ndarray, others: np.ndarray, seen: Seen, number: int) -> np.ndarray:
        return 8 * (scores - others)[:, 0].repeat(REDUCED, axis=1).repeat(REDUCED, axis=2)


@pytest.fixture(scope="module")
def reader() -> BrightReader:
    return BrightReader()


def ball(centre: tuple[float, float, float], shape: tuple[int, int, int] = (64, 48, 12), radius: float = 8.0
         ) -> tuple[Volume, np.ndarray]:
    """A bright ball, flat along the slices, in noise; and its label map."""
    places = np.indices(shape).astype(float)
    away = np.zeros(shape)
    for place, at, stretch in zip(places, centre, (1, 1, 0.4), strict=True):
        away += ((place - at) / stretch) ** 2
    label = (away < radius**2).astype(np.uint8)
    image = np.random.default_rng(0).normal(0.2, 0.05, shape) + 0.6 * label
    return volume(image.astype(np.float32)), label


def stack_of(image: Volume, axis: int = 2) -> Stack:
    return Stack(image, axis, IntensityScaling.for_volume(image.array), "one")


def subject_of(image: Volume, label: np.ndarray, axis: int = 2) -> Subject:
    return Subject(stack_of(image, axis), label)


def located(query: Stack, subject: Subject, reader: BrightReader) -> Located | None:
    return locate(query, [subject], ReferenceReading([subject], LabelReading(reader, [1]), WHOLE, 0))


def test_structures_are_located_where_they_are(reader: BrightReader) -> None:
    reference, query = ball((20, 20, 6)), ball((44, 30, 6))
    found = located(stack_of(query[0]), subject_of(*reference), reader)
    assert found is not None
    assert set(found.extents) <= {int(k) for k in np.flatnonzero(query[1].any(axis=(0, 1)))} | {2, 3, 9, 10}
    middle = found.extents[6]
    assert np.allclose(middle.centre, (44, 30), atol=3)
    assert middle.side_mm == subject_of(*reference).side_mm
    assert found.place(6) == pytest.approx(0.5, abs=0.1)


def test_what_lies_far_from_the_structures_is_not_where_to_look(reader: BrightReader) -> None:
    reference, (query, _) = ball((20, 20, 6)), ball((44, 30, 6))
    array = query.array.copy()
    array[2:6, 2:6, 5:8] = 0.8  # as bright as the structure, but small
    found = located(stack_of(query.with_array(array)), subject_of(*reference), reader)
    assert found is not None
    assert found.found[40:48, 26:34, 6].any()
    assert not found.found[:10, :10].any()


def test_nothing_bright_is_nowhere(reader: BrightReader) -> None:
    dark = volume(np.random.default_rng(1).normal(0.2, 0.05, (32, 32, 4)).astype(np.float32))
    as_it_is = Stack(dark, 2, IntensityScaling(0.0, 1.0, "window"))  # not spread from its darkest to its brightest
    assert located(as_it_is, subject_of(*ball((20, 20, 6))), reader) is None


def test_a_registration_that_lands_elsewhere_disagrees(reader: BrightReader) -> None:
    reference, query = ball((20, 20, 6)), ball((36, 26, 6))
    found = located(stack_of(query[0]), subject_of(*reference), reader)
    assert found is not None
    label = reference[0].with_array(reference[1])
    right = align(query[0], reference[0], label=label, affine_only=True)
    assert found.agreement(right, label) > 0.6 > DISAGREES
    elsewhere = align(ball((50, 10, 6))[0], reference[0], label=label, affine_only=True)
    assert found.agreement(replace(elsewhere, query=query[0].geometry), label) < DISAGREES


def test_slices_from_the_same_place_count_most(reader: BrightReader) -> None:
    """The lower half of the reference labels what is bright, the upper half what is dark."""
    image = np.random.default_rng(2).random((32, 32, 16)).astype(np.float32) * 0.2
    image[8:24, 8:24] += 0.7
    label = np.zeros(image.shape, np.uint8)
    label[8:24, 8:24, :8] = 1
    label[..., 8:] = 1
    label[8:24, 8:24, 8:] = 0
    subject = subject_of(volume(image), label)
    reading = ReferenceReading([subject], LabelReading(reader, [1]), 32, 0)
    cut = subject.stack.cut(4, subject.stack.whole, 32)
    low, high = (reading.read(cut, [at])[..., 1] for at in (2, 13))
    assert low[12:20, 12:20].mean() > 0.5 > low[:6].mean()
    assert high[12:20, 12:20].mean() < 0.5 < high[:6].mean()


def test_own_slices_count_beside_references(reader: BrightReader) -> None:
    image, label = ball((20, 20, 6))
    reading, size = LabelReading(reader, [1]), 32
    by_others = ReferenceReading([subject_of(image, label)], reading, size, 1.5)
    cut = stack_of(image).cut(6, stack_of(image).field((20, 20), 24, size), size)
    opposite = reading.encode(cut.image, 1 - cut.label(label[..., 6]))
    plain, doubted = by_others.read(cut), by_others.read(cut, own=[opposite] * 50)
    assert plain[16, 16, 1] > 0.5 > doubted[16, 16, 1]


def test_no_more_slices_are_looked_at_than_needed(reader: BrightReader) -> None:
    looked = []

    class Counting(BrightReader):
        def look(self, images: np.ndarray) -> Seen:
            looked.append(len(images))
            return super().look(images)

    image, label = ball((20, 20, 50), (32, 32, 100), 12)
    subjects = [subject_of(image, label) for _ in range(4)]
    reading = ReferenceReading(subjects, LabelReading(Counting(), [1]), 32, 0)
    cut = subjects[0].stack.cut(50, subjects[0].stack.whole, 32)
    for _ in range(3):
        reading.read(cut)
    assert sum(looked) == MOST_SLICES + 3  # each reference slice once, the query each time


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_painted_and_read_answers_are_mixed_by_their_share(reader: BrightReader, share: float) -> None:
    image, label = ball((20, 20, 6))
    backend = TorchBackend(tiny_network(), "cpu", reader=reader)
    painter = SlicePainter(backend, [1], share=share)
    cut = stack_of(image).cut(6, stack_of(image).field((20, 20), 32, 32), 32)
    example = Example(cut.image, cut.label(label[..., 6]), "key")
    read = SlicePainter(backend, [1], share=1).solve(cut.image, [example])
    painted = SlicePainter(TorchBackend(tiny_network(), "cpu"), [1], share=1).solve(cut.image, [example])
    assert not np.allclose(read, painted, atol=1e-2)
    np.testing.assert_allclose(painter.solve(cut.image, [example]), (1 - share) * painted + share * read, atol=1e-5)


def test_another_patient_whom_no_registration_finds_is_read(reader: BrightReader) -> None:
    """The registration is led astray; what is read says where to look, and the answer is there."""
    (image, label), (query, truth) = ball((16, 16, 6)), ball((46, 32, 6))
    backend = TorchBackend(tiny_network(), "cpu", reader=reader)
    astray = align(ball((16, 16, 6))[0], image, label=image.with_array(label), affine_only=True)

    def register(_: Volume, *arguments: object, **settings: object) -> object:
        return replace(astray, query=query.geometry)

    def solved(reading: float) -> tuple[float, dict]:
        config = EngineConfig.preset("fast", reading=reading, size=48)
        engine = VolumeEngine(Predictor(backend), config, register)  # type: ignore[arg-type]
        found = engine.solve(query, Reference(image, image.with_array(label)), plane=2)
        mine = found.volume.array > 0
        dice = 2 * np.count_nonzero(mine & (truth > 0)) / max(1, np.count_nonzero(mine) + np.count_nonzero(truth))
        return dice, found.provenance

    assert solved(0.0)[0] < 0.1
    dice, provenance = solved(1.0)
    assert dice > 0.6
    (prompt,) = provenance["prompts"]
    assert prompt["registration"] is None


def picture_subject(seed: int, *, dark: bool = False) -> Subject:
    """A disc in a picture, bright or as dark as everything else."""
    place = np.random.default_rng(seed).integers(24, 40, 2)
    away = np.hypot(*(np.indices((64, 64)) - place[:, None, None]))
    label = (away < 10).astype(np.uint8)[..., None]
    image = np.random.default_rng(seed + 99).normal(0.2, 0.05, label.shape) + (0.0 if dark else 0.6) * label
    return Subject(Stack(volume(image.astype(np.float32)), 2, IntensityScaling(0, 1, "window"), str(seed)), label)


def test_references_tell_whether_painting_or_reading_suits_them(reader: BrightReader) -> None:
    """First a painter that finds nothing, beside a reader that does; then the other way round."""
    painter = SlicePainter(TorchBackend(tiny_network(), "cpu", reader=reader), [1], share=1)
    subjects = [picture_subject(seed) for seed in range(4)]
    reading = ReferenceReading(subjects, painter.reading, 32, 1.3)  # type: ignore[arg-type]
    config = EngineConfig(size=32)
    painter.paint = lambda query, _: painter.one_hot(np.zeros(query.shape, int))  # type: ignore[method-assign]
    assert share_by_references(subjects, painter, reading, 32, config) == 1.0

    cuts = [(subject.stack.cut(0, reading.field_of(subject, 0), 32), subject.label[..., 0]) for subject in subjects]
    truth = {cut.image.tobytes(): cut.label(label) for cut, label in cuts}
    painter.paint = lambda query, _: painter.one_hot(truth[query.tobytes()])  # type: ignore[method-assign]
    painter.reading = LabelReading(NothingReader(), [1])
    blind = ReferenceReading(subjects, painter.reading, 32, 1.3)
    assert share_by_references(subjects, painter, blind, 32, config) < 1.0


class NothingReader(BrightReader):
    """Sees all images alike."""

    def look(self, images: np.ndarray) -> Seen:
        return super().look(np.zeros_like(images))


def test_one_that_is_left_out_does_not_read_itself(reader: BrightReader) -> None:
    subjects = [picture_subject(0), picture_subject(1), picture_subject(2, dark=True)]
    reading = ReferenceReading(subjects, LabelReading(reader, [1]), 32, 1.3)
    alone = ReferenceReading(subjects[:2], LabelReading(reader, [1]), 32, 1.3)
    cut = subjects[2].stack.cut(0, reading.field_of(subjects[2], 0), 32)
    np.testing.assert_allclose(reading.read(cut, [0, 0, 0], without=2), alone.read(cut, [0, 0]), atol=1e-5)
    assert abs(reading.read(cut, [0, 0, 0]) - alone.read(cut, [0, 0])).max() > 1e-4

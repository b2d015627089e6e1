"""Calibration of the engine: what it looks at worked by hand, curves that find the truth, and the constants shipped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt
from test_engine import Grey, engine, labelled
from test_predict import GREYS, volume
from tiny import tiny_network

from mvg_core.backends import together
from mvg_core.engine.answer import VolumeAnswer
from mvg_core.engine.calibration import (
    CONSTANTS,
    KINDS,
    MOST_EVIDENCE,
    Calibration,
    Curve,
    Kind,
    SliceFacts,
    evidence_of,
    facts_of,
    nearest_found,
    remoteness_of,
)
from mvg_core.engine.quality import SliceQuality
from mvg_core.evaluation.calibration import Reliability
from mvg_core.reader_backends import reader_beside
from mvg_core.references import Reference
from mvg_core.weights import file_sha256, find_weights

WAYS = [Calibration.way(n_others, is_fused=fused) for n_others in (0, 1, 3) for fused in (True, False)]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[SimpleNamespace]:
    """The scripts that measure and fit."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(calibration=import_module("calibration"), runs=import_module("engine_runs"))
    finally:
        sys.path.remove(folder)


# --- what is looked at ---


def test_the_evidence_of_two_labels_is_the_log_odds_of_the_better_one() -> None:
    probability = np.array([0.5, 0.6, 0.9, 0.999], np.float32)
    expected = np.log(probability / (1 - probability))
    np.testing.assert_allclose(evidence_of(2 * probability - 1), expected, rtol=1e-4, atol=1e-6)
    assert evidence_of(np.array([1.0], np.float32))[0] == pytest.approx(MOST_EVIDENCE, abs=0.01)


def test_remoteness_by_hand() -> None:
    found = np.zeros((3, 4), bool)
    found[1, 0] = True
    np.testing.assert_allclose(remoteness_of(found), [[1, 2, 3, 4], [0.02, 1, 2, 3], [1, 2, 3, 4]])
    found[:2, :2] = True  # four voxels: a side of two
    np.testing.assert_allclose(remoteness_of(found), [[0.02, 0.02, 0.5, 1], [0.02, 0.02, 0.5, 1], [0.5, 0.5, 1, 1.5]])
    np.testing.assert_array_equal(remoteness_of(np.zeros((2, 2), bool)), 5)


def test_remoteness_counts_steps_to_the_nearest_of_any_shape() -> None:
    found = np.random.default_rng(0).random((40, 33)) > 0.97
    steps = distance_transform_cdt(~found, "taxicab")
    np.testing.assert_allclose(remoteness_of(found), np.clip(steps / np.sqrt(found.sum()), 0.02, 5), rtol=1e-6)


def test_a_structure_that_was_missed_would_be_where_the_nearest_slice_shows_it() -> None:
    labels = np.zeros((7, 2, 2), np.uint8)
    assert nearest_found(labels) == list(range(7))
    labels[2, 0, 0] = labels[5, 1, 1] = 1
    assert nearest_found(labels) == [2, 2, 2, 2, 5, 5, 5]


def test_facts_of_slices_by_hand() -> None:
    label = np.zeros((6, 2, 2), np.uint8)
    label[1, 0, 0] = 1
    label[2, 0], label[3, 0] = 1, (1, 2)  # of two and two voxels one is the same
    quality = {number: SliceQuality(0.9, int((label[number] > 0).sum())) for number in (0, 2, 3, 5)}
    answer = VolumeAnswer(label, np.ones(label.shape, np.float32), quality)
    own, others = facts_of(answer, 0, [1]), facts_of(answer, 0, [])
    assert own[2] == SliceFacts(0.9, 2, 2 / 3, 1 / 3, 0.0)
    assert own[3] == SliceFacts(0.9, 2, 0.5, 2 / 3, 1.0)
    assert own[5] == SliceFacts(0.9, 0, 0.0, 4 / 3, 3.0)
    assert others[2] == SliceFacts(0.9, 2, (2 / 3 + 0.5) / 2, 0.0, 0.0)
    assert [len(facts.features()) for facts in own.values()] == [len(KINDS[facts.kind]) for facts in own.values()]
    across = VolumeAnswer(np.moveaxis(label, 0, 2), np.moveaxis(answer.confidence, 0, 2), quality)
    assert facts_of(across, 2, [1]) == own


# --- curves ---


def test_a_curve_is_found_again() -> None:
    truth, features = Curve((0.7, 1.5), -0.8), np.random.default_rng(0).normal(size=(400, 2))
    found = Curve.fitted(features, truth(features), np.full(400, 1e4))
    np.testing.assert_allclose([*found.weights, found.offset], [0.7, 1.5, -0.8], atol=2e-3)


def test_observations_count_by_their_weight() -> None:
    features, share = np.zeros((2, 1)), np.array([0.0, 1.0])
    assert Curve.fitted(features, share, np.array([1.0, 3.0]))(np.zeros(1)) == pytest.approx(0.75, abs=1e-3)


def test_more_of_a_feature_never_makes_a_label_less_likely() -> None:
    features = np.random.default_rng(0).normal(size=(300, 2))
    found = Curve.fitted(features, Curve((-2.0, 1.0), 0.5)(features), np.ones(300))
    assert found.weights[0] == 0
    assert found.weights[1] > 0.3


def test_few_observations_pull_a_curve_less() -> None:
    features, share = np.array([[-1.0], [1.0]]), np.array([0.0, 1.0])
    slopes = [Curve.fitted(features, share, np.full(2, weight)).weights[0] for weight in (0.1, 1, 1000)]
    assert 0 < slopes[0] < slopes[1] < slopes[2] < 100


# --- applied ---


def flat(**changes: Curve) -> Calibration:
    """Curves that look at the evidence, or the soft Dice, alone."""
    curves: dict[Kind, Curve] = {"found": Curve((0.5, 0.0), 0.0), "background": Curve((1.0, 0.0, 0.0), 0.0),
                   "slice": Curve((0.5, 0.0, 0.0, 0.0, 0.0), 0.0), "empty": Curve((1.0, 0.0, 0.0), 0.0)}
    curves |= changes  # type: ignore[arg-type]
    return Calibration(dict.fromkeys(WAYS, curves), 0.97, "measured")


def painted(axis: int = 0) -> VolumeAnswer:
    """Slice 1 is labelled, 2 and 3 are painted in part, 0 is not painted."""
    label, lead = np.zeros((4, 6, 5), np.uint8), np.ones((4, 6, 5), np.float32)
    label[1, 2:4, 2:4], label[2, 2:4, 2:4] = 2, 2
    lead[1], lead[2, 1:5, 1:4], lead[3, 1:5, 1:4] = 0.5, 0.8, 0.6
    quality = {2: SliceQuality(0.9, 4), 3: SliceQuality(0.7, 0)}
    return VolumeAnswer(np.moveaxis(label, 0, axis), np.moveaxis(lead, 0, axis).copy(), quality)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_confidence_becomes_a_probability(axis: int, way: str) -> None:
    answer = painted(axis)
    before = answer.label.copy()
    flat().apply(answer, axis, [1], way)
    np.testing.assert_array_equal(answer.label, before)
    sure = np.moveaxis(answer.confidence, axis, 0)
    np.testing.assert_allclose(sure[0], 0.97)
    np.testing.assert_array_equal(sure[1], 1)
    np.testing.assert_allclose(sure[2, 2:4, 2:4], 0.75, rtol=1e-5)  # odds 0.9 : 0.1 = 9, of which the root
    assert sure[2, 1, 1] == pytest.approx(0.9)
    np.testing.assert_allclose(sure[3, 1:5, 1:4], 0.8, rtol=1e-5)
    np.testing.assert_allclose(sure[2:, 0], 0.97)  # beyond what was painted
    assert [quality.dice for quality in answer.quality.values()] == [pytest.approx(0.75), pytest.approx(0.7)]
    assert [quality.expected for quality in answer.quality.values()] == [0.9, 0.7]


def test_voxels_are_believed_less_in_slices_that_are_not() -> None:
    sure = []
    for soft_dice in (0.9, 0.3):
        answer = painted()
        answer.quality[2] = SliceQuality(soft_dice, 4)
        flat(found=Curve((0.5, 1.0), 0.0)).apply(answer, 0, [1], WAYS[0])
        sure.append(answer.confidence[2, 2, 2])
    assert sure[0] > sure[1] + 0.2


def test_background_is_surer_the_farther_it_is_from_what_was_found() -> None:
    answer = painted()
    flat(background=Curve((0.1, 0.0, 1.0), 1.0)).apply(answer, 0, [1], WAYS[0])
    for number in (2, 3):  # of the empty slice the one before says where to look
        row = answer.confidence[number, 1:5, 1]
        assert row[0] > row[1] == row[2] < row[3]


def test_a_quality_that_was_not_calibrated_is_the_soft_one() -> None:
    assert SliceQuality(0.8, 3).expected_dice == 0.8
    assert replace(SliceQuality(0.8, 3), dice=0.5).expected_dice == 0.5


# --- shipped ---


def test_the_shipped_constants_are_complete_and_monotone() -> None:
    shipped = Calibration.shipped()
    assert set(shipped.curves) == set(WAYS)
    for curves in shipped.curves.values():
        assert {kind: len(curve.weights) for kind, curve in curves.items()} == {
            kind: len(features) for kind, features in KINDS.items()}
        assert min(min(curve.weights) for curve in curves.values()) >= 0
        assert curves["found"].weights[0] > 0
    assert 0.9 < shipped.beyond < 1
    assert Calibration.from_json(json.loads(json.dumps(shipped.to_json()))) == shipped


def test_the_shipped_constants_are_of_the_shipped_weights() -> None:
    """If not: `make benchmark-calibration`."""
    path = find_weights()
    beside = reader_beside(path)
    reader = "" if beside is None else file_sha256(beside)
    assert Calibration.shipped().weights_sha256 == together(file_sha256(path), reader)


def test_the_wheel_carries_the_constants() -> None:
    settings = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    assert f'"engine/{CONSTANTS.name}"' in settings


def test_an_answer_says_how_it_was_calibrated() -> None:
    labels = np.zeros((16, 16, 5), np.uint8)
    labels[4:10, 4:10] = 1
    query = volume(200.0 * labels)
    found = engine(Grey()).solve(query, labelled(query, labels, 0), window=GREYS)
    assert found.confidence is not None
    sure = found.confidence.array
    assert ((sure >= 0) & (sure <= 1)).all()
    assert (sure[..., 0] == 1).all()
    facts = SliceFacts(0.0, 36, 1.0, 1 / 5, abs(1 - 2) / 2)
    one = found.provenance["slice_quality"]["1"]
    expected = Calibration.shipped().dice(replace(facts, soft_dice=one["soft_dice"]), "own, network")
    assert one == {"expected_dice": pytest.approx(expected, abs=1e-3), "soft_dice": one["soft_dice"], "voxels": 36}
    assert found.provenance["calibration"] == {
        "weights_sha256": Calibration.shipped().weights_sha256, "is_of_these_weights": False}
    reference = Reference(volume(200.0 * labels[::-1]), volume(labels[::-1]))
    others = engine(Grey()).solve(query, reference, window=GREYS, plane=2)
    facts = SliceFacts(one["soft_dice"], 36, 1.0, 0.0, 0.5)  # WHOLE registers nothing
    expected = Calibration.shipped().dice(facts, "few others, network")
    assert others.provenance["slice_quality"]["1"]["expected_dice"] == pytest.approx(expected, abs=1e-3)


def test_the_network_alone_is_not_calibrated() -> None:
    labels = np.zeros((16, 16, 3), np.uint8)
    labels[4:10, 4:10] = 1
    query = volume(200.0 * labels)
    found = engine(Grey(), "plain").solve(query, labelled(query, labels, 0), window=GREYS)
    assert "calibration" not in found.provenance


# --- measured and fitted ---


def made_up_runs(benchmark: SimpleNamespace, n_subjects: int = 8) -> list[Any]:
    """Answers of an overconfident network: evidence is worth 0.4 of what it seems, in every other slice less."""
    random, runs = np.random.default_rng(0), benchmark.runs
    found = []
    for number in range(n_subjects):
        truth = np.zeros((6, 40, 40), np.uint8)
        truth[:, 10:30, 10:30] = 1
        lead = np.tanh(random.uniform(0.2, 8, truth.shape) / 2).astype(np.float32)
        odds = 0.4 * evidence_of(lead) - 1.5 * (np.arange(6) % 2)[:, None, None]
        right = random.random(truth.shape) < 1 / (1 + np.exp(-odds))
        label = np.where(right, truth, 1 - truth).astype(np.uint8)
        quality = {at: SliceQuality(0.9 if at % 2 else 0.95, int(label[at].sum())) for at in range(6) if at != 0}
        label[0], lead[0] = truth[0], 1
        problem = SimpleNamespace(axis=0, target=truth, solved=(0,), task=SimpleNamespace(foreground=(1,)),
                                  use=SimpleNamespace(name="made up, one slice -> volume"),
                                  case=SimpleNamespace(name=str(number), subject=str(number)))
        found.append(runs.scored(problem, "fast", VolumeAnswer(label, lead, quality), 1.0))
    return found


@pytest.fixture(scope="module")
def made_up(benchmark: SimpleNamespace) -> list[Any]:
    return made_up_runs(benchmark)


def test_every_voxel_is_counted_once_and_runs_are_kept_whole(benchmark: SimpleNamespace, made_up: list[Any]) -> None:
    run = made_up[0]
    assert run.counts.sum() + run.beyond.sum() == 5 * 40 * 40  # the labelled slice does not count
    again = benchmark.runs.Run.from_json(json.loads(json.dumps(run.to_json())))
    np.testing.assert_array_equal(again.counts, run.counts)
    assert again.facts == run.facts
    assert again.to_json() == run.to_json()


def test_no_subject_is_judged_by_curves_that_know_it(benchmark: SimpleNamespace, made_up: list[Any],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    script, seen = benchmark.calibration, []
    fitted = script.fitted
    monkeypatch.setattr(script, "fitted", lambda runs, sha: seen.append({one.subject for one in runs}) or
                        fitted(runs, sha))
    judged = list(script.judgements(made_up, "sha"))
    assert len(judged) == len(made_up)
    for number, one in enumerate(judged):
        assert one.run.subject not in seen[number // 4]
    assert seen[0].isdisjoint(seen[1])


def test_overconfidence_is_cured(benchmark: SimpleNamespace, made_up: list[Any]) -> None:
    judged = list(benchmark.calibration.judgements(made_up, "sha"))
    for region in ("found", "near", "band", "all"):
        before, after = (Reliability.total(getattr(one, when)[region] for one in judged).expected_error
                         for when in ("before", "after"))
        assert before > 0.15
        assert after < 0.03
    table = benchmark.calibration.slice_table(judged)[-1]
    assert table["mean_absolute_error"][1] < 0.1 < table["mean_absolute_error"][0]


def test_what_the_report_says_of_confidence_is_what_the_engine_gives(benchmark: SimpleNamespace, made_up: list[Any]
                                                                     ) -> None:
    """The script works on counts of voxels, the engine on voxels."""
    calibration = benchmark.calibration.fitted(made_up, "sha")
    truth, random = np.zeros((3, 20, 20), np.uint8), np.random.default_rng(1)
    truth[:, 5:15, 5:15] = 1
    lead = random.random(truth.shape).astype(np.float32)
    label = np.where(random.random(truth.shape) < 0.8, truth, 1 - truth).astype(np.uint8)
    answer = VolumeAnswer(label, lead, {at: SliceQuality(0.9, int(label[at].sum())) for at in range(3)})
    problem = SimpleNamespace(axis=0, target=truth, solved=(), task=SimpleNamespace(foreground=(1,)),
                              use=SimpleNamespace(name="made up, one slice -> volume"),
                              case=SimpleNamespace(name="x", subject="x"))
    run = benchmark.runs.scored(problem, "fast", answer, 1.0)
    told = benchmark.calibration.Judged(run, calibration).after["all"]
    calibration.apply(answer, 0, [], "own, network")
    real = Reliability.of(answer.confidence, label == truth)
    assert told.voxels.sum() == real.voxels.sum()
    assert told.confidence.sum() == pytest.approx(real.confidence.sum(), rel=0.01)
    assert told.expected_error == pytest.approx(real.expected_error, abs=0.02)


def test_another_networks_weights_are_not_those_measured() -> None:
    assert tiny_network() is not None
    described = Calibration.shipped().described("another")
    assert described["is_of_these_weights"] is False
    assert Calibration.shipped().described(Calibration.shipped().weights_sha256)["is_of_these_weights"] is True


def test_configurations_are_all_different_and_named_for_what_they_change(benchmark: SimpleNamespace) -> None:
    found = benchmark.runs.configurations()
    configs = [config for name, (config, _) in found.items() if name != benchmark.runs.DEMONS]
    assert len(set(configs)) == len(configs)
    assert {"plain", "fast", "balanced", "accurate"} <= set(found)

"""Evaluations of files and of datalists: what is compared with what, which examples serve whom, and what goes wrong."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_weights
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.evaluation.cases import Case, Pair, cases_of, examples_for, pair_for, read_cases, read_references
from mvg_core.evaluation.files import match_files
from mvg_core.evaluation.runner import Evaluation, EvaluationSettings, evaluate_list
from mvg_core.predict import Prediction
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import VolumeWriteError, read_volume, write_volume

SHAPE = (24, 20, 6)
SPACING = (1.0, 1.0, 4.0)
SOLVER = {"name": "test"}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pt")


def truth_of(subject: int) -> np.ndarray:
    """Two blocks, a little elsewhere in every subject; label 2 not in the outer slices."""
    label = np.zeros(SHAPE, np.uint8)
    label[4 + subject % 3 : 12, 5:14, 1:5] = 1
    label[13:18, 5:14, 2:4] = 2
    return label


def image_of(subject: int) -> np.ndarray:
    noise = np.random.default_rng(subject).normal(0, 5, SHAPE)
    return (np.array([20, 120, 200])[truth_of(subject)] + noise).astype(np.float32)


def save(array: np.ndarray, path: Path, spacing: tuple[float, float, float] = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume.from_array(array, spacing), path, overwrite=True)
    return path


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    """Three subjects to be solved (one has two items), four that serve as examples, one of them on both sides."""
    folder = tmp_path / "set"

    def item(subject: int, name: str) -> dict[str, str]:
        save(image_of(subject), folder / "images" / f"{name}.nii.gz")
        save(truth_of(subject), folder / "labels" / f"{name}.nii.gz")
        return {"subject": f"s{subject}", "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}

    content = {"name": "blocks", "modality": "MR", "role": "unseen", "labels": {"0": "none", "1": "low", "2": "high"},
               "test": [item(0, "s0_a"), item(0, "s0_b"), item(1, "s1"), item(2, "s2")],
               "references": [item(10, "s10"), item(11, "s11"), item(12, "s12"), item(0, "s0_c")]}
    path = folder / "dataset.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


class Oracle:
    """Answers with the truth, which it knows the query's image by; remembers what it was given."""

    def __init__(self, folder: Path, key: str = "labels") -> None:
        self._truths = {read_volume(path).array.tobytes(): folder / key / path.name for path in
                        (folder / "images").glob("*.nii.gz")}
        self.calls: list[tuple[Sequence[Reference], Task, int, Volume | None]] = []

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        self.calls.append((references, task, plane, hole))
        truth = read_volume(self._truths[query.array.tobytes()]).array
        answer = np.where(np.isin(truth, task.foreground), truth, 0).astype(np.uint8)
        return Prediction(query.with_array(answer), query.with_array(np.ones(answer.shape, np.float32)))


def run(listing: Path, out: Path, solve: Callable[..., Prediction] | None = None, *, draws: int = 1,
        limit: int | None = None, solver: dict[str, str] = SOLVER, **settings: Any) -> Evaluation:
    solve = solve or Oracle(listing.parent)
    return evaluate_list(EvaluationSettings(listing, **settings), solve, solver, out, draws=draws, limit=limit)


def edit(listing: Path, **changes: Any) -> None:
    listing.write_text(json.dumps({**json.loads(listing.read_text()), **changes}))


def dices(evaluation: Evaluation) -> list[float]:
    return [score.dice for result in evaluation.results for score in result.scores]  # type: ignore[union-attr]


# --- cases and examples ---


def test_cases_have_unique_names_fit_for_files() -> None:
    items = [{"image": "/a/x.nii.gz", "subject": "p/1"}, {"image": "/a/p2_a.png", "subject": "p2"},
             {"image": "/a/b.png", "subject": "p2"}, {"image": "/b/b.png", "subject": "p2"}, {"image": "/a/solo.nii"}]
    cases = cases_of(items)
    assert [case.name for case in cases] == ["p_1", "p2_a", "p2_b", "p2_b~3", "solo"]
    assert [case.subject for case in cases] == ["p/1", "p2", "p2", "p2", "solo"]


def test_items_may_name_their_images_by_contrast(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"role": "unseen", "labels": {"1": "lesion"}, "training": [
        {"subject": "a", "t1": "a1.nii.gz", "t2": "a2.nii.gz"}], "test": [
        {"subject": "b", "t1": "b1.nii.gz", "flair": "b3.nii.gz", "label": "b.nii.gz"},
        {"subject": "c", "t2": "c.nii"}]}))
    first, second = read_cases(path, "test")
    assert {name: file.name for name, file in first.images.items()} == {"t1": "b1.nii.gz", "flair": "b3.nii.gz"}
    assert (first.label, first.labels) == (tmp_path / "b.nii.gz", {1: "lesion"})
    assert read_references(path)[0].subject == "a"  # of an unseen set, too: as an example, not for training
    pair = pair_for(first, "synthesis", "t1", "flair")
    assert (pair.image.name, pair.answer.name, pair.is_made) == ("b1.nii.gz", "b3.nii.gz", False)
    assert pair_for(second, "denoising").is_made
    with pytest.raises(ValueError, match="c has no label"):
        pair_for(second, "segmentation")
    with pytest.raises(ValueError, match="c has no contrast 't1', only t2"):
        pair_for(second, "synthesis", "t1", "t2")


def test_nobody_is_an_example_for_themselves() -> None:
    pool = [Pair(Case(f"{subject}_{n}", subject, {"image": Path(f"/{subject}{n}.nii")}), Path("i"), Path("l"))
            for subject in "abc" for n in range(2)]
    again = Case("x", "other name", {"image": Path("/c1.nii")})  # the same file under another subject
    for draw in range(20):
        order = examples_for(Case("query", "b", {"image": Path("/q.nii")}), pool, draw)
        assert sorted(pair.case.subject for pair in order) == ["a", "a", "c", "c"]
        assert "c_1" not in [pair.case.name for pair in examples_for(again, pool, draw)]


def test_examples_are_the_same_whatever_else_is_listed_and_differ_between_draws_and_queries() -> None:
    def names(query: str, draw: int, pool: Sequence[Pair]) -> list[str]:
        return [pair.case.name for pair in examples_for(Case(query, query, {}), pool, draw)]

    pool = [Pair(Case(f"r{n}", f"r{n}", {}), Path("i"), Path("l")) for n in range(12)]
    order = names("q", 0, pool)
    assert names("q", 0, pool[::-1]) == order
    assert names("q", 0, pool[:6]) == [name for name in order if int(name[1:]) < 6]
    assert len({tuple(names(query, draw, pool)) for query in ("q", "p") for draw in range(3)}) == 6


# --- running a list ---


def test_an_oracle_scores_one_and_is_shown_other_subjects_only(listing: Path, tmp_path: Path) -> None:
    oracle = Oracle(listing.parent)
    evaluation = run(listing, tmp_path / "out", oracle, n_references=3, draws=2)
    assert dices(evaluation) == [1.0] * 16
    assert not evaluation.failures
    assert len(oracle.calls) == 8
    assert all(len(references) == 3 for references, *_ in oracle.calls)
    for result in evaluation.results:
        assert result.subject not in result.facts["reference_subjects"]
    assert {result.subject for result in evaluation.results} == {"s0", "s1", "s2"}
    others = [result for result in evaluation.results if result.subject != "s0"]
    assert any("s0" in result.facts["reference_subjects"] for result in others)  # it does serve the others
    assert oracle.calls[0][1] == Task.segmentation({1: "low", 2: "high"})


def test_too_few_examples_of_other_subjects_fail_their_case_only(listing: Path, tmp_path: Path) -> None:
    evaluation = run(listing, tmp_path / "out", n_references=4)
    assert [result.subject for result in evaluation.results] == ["s1", "s2"]
    assert [failure.case for failure in evaluation.failures] == ["s0_a", "s0_b"]
    assert "3 references of other subjects than s0" in evaluation.failures[0].reason


def test_the_query_under_another_subject_is_noticed(listing: Path, tmp_path: Path) -> None:
    content = json.loads(listing.read_text())
    save(image_of(2), listing.parent / "images" / "copy.nii.gz")
    content["references"] = [{**content["references"][0], "subject": "unknown", "image": "images/copy.nii.gz"}]
    edit(listing, references=content["references"])
    evaluation = run(listing, tmp_path / "out")
    (failure,) = evaluation.failures
    assert failure.case == "s2"
    assert "copy.nii.gz" in failure.reason
    assert "same image" in failure.reason
    denoised = run(listing, tmp_path / "noise", lambda query, *_, **__: Prediction(query, None), kind="denoising")
    assert [failure.case for failure in denoised.failures] == ["s2"]


def test_examples_that_show_no_wanted_label_are_passed_over(listing: Path, tmp_path: Path) -> None:
    for name in ("s10", "s11"):
        save(np.zeros(SHAPE, np.uint8), listing.parent / "labels" / f"{name}.nii.gz")
    evaluation = run(listing, tmp_path / "out")
    assert {name for result in evaluation.results for name in result.references} <= {"s12", "s0_c", "s0"}
    assert len(evaluation.results) == 4


def test_labels_that_no_example_shows_are_not_counted(listing: Path, tmp_path: Path) -> None:
    for name in ("s10", "s11", "s12", "s0_c"):
        label = truth_of(10)
        label[label == 2] = 0
        save(label, listing.parent / "labels" / f"{name}.nii.gz")
    evaluation = run(listing, tmp_path / "out", limit=1)
    (result,) = evaluation.results
    assert [score.label for score in result.scores] == [1]  # type: ignore[union-attr]
    assert result.remarks == ("not counted, because no reference shows it: label 2",)


def test_a_damaged_case_is_reported_and_the_others_go_on_and_it_is_tried_again(listing: Path, tmp_path: Path) -> None:
    damaged, oracle = listing.parent / "images" / "s1.nii.gz", Oracle(listing.parent)
    good = damaged.read_bytes()
    damaged.write_bytes(good[: len(good) // 2])
    (listing.parent / "labels" / "s2.nii.gz").unlink()
    other_grid = save(truth_of(0), listing.parent / "labels" / "s0_b.nii.gz", (1.0, 1.0, 5.0))
    evaluation = run(listing, tmp_path / "out", oracle)
    assert [failure.case for failure in evaluation.failures] == ["s0_b", "s1", "s2"]
    assert f"{listing.parent / 'images' / 's0_b.nii.gz'} and {other_grid}" in evaluation.failures[0].reason
    assert str(damaged) in evaluation.failures[1].reason
    assert "no such file" in evaluation.failures[2].reason
    assert len(evaluation.results) == 1
    damaged.write_bytes(good)
    assert [failure.case for failure in run(listing, tmp_path / "out").failures] == ["s0_b", "s2"]


def test_a_defect_of_the_solver_is_reported_with_its_place(listing: Path, tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> Prediction:
        raise KeyError("x")

    evaluation = run(listing, tmp_path / "out", broken, limit=1)
    assert re.fullmatch(r"KeyError: 'x' \(test_evaluate_command.py:\d+\)", evaluation.failures[0].reason)


def test_finished_cases_are_not_solved_again(listing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(listing, out, limit=2)
    oracle = Oracle(listing.parent)
    evaluation = run(listing, out, oracle, draws=2)
    assert len(oracle.calls) == 6  # 4 cases, 2 draws, 2 done
    assert len(evaluation.results) == 8
    (out / "cases" / "s1.0.json").write_text('{"kind": "segmentation"')  # half written by something else
    oracle = Oracle(listing.parent)
    again = run(listing, out, oracle)
    assert len(oracle.calls) == 1
    assert [one.scores for one in again.results] == [one.scores for one in evaluation.results if one.draw == 0]


@pytest.mark.parametrize("change", [{"n_references": 2}, {"tolerance_mm": 1.0}, {"solver": {"name": "another"}}])
def test_results_of_other_settings_are_not_mixed(change: dict[str, Any], listing: Path, tmp_path: Path) -> None:
    run(listing, tmp_path / "out", limit=1)
    with pytest.raises(ValueError, match=rf"other settings \({next(iter(change))}\).*--out"):
        run(listing, tmp_path / "out", limit=1, **change)


def test_results_of_a_list_that_has_changed_are_not_mixed(listing: Path, tmp_path: Path) -> None:
    run(listing, tmp_path / "out", limit=1)
    edit(listing, labels={"1": "low"})
    with pytest.raises(ValueError, match="listing_sha256"):
        run(listing, tmp_path / "out", limit=1)


def test_examples_may_come_from_another_list(listing: Path, tmp_path: Path) -> None:
    content = json.loads(listing.read_text())
    other = listing.parent / "examples.json"
    other.write_text(json.dumps({"labels": content["labels"], "training": content["references"][1:2]}))
    edit(listing, references=[])
    with pytest.raises(ValueError, match=f"{listing}.*references or training.*--reference-list"):
        run(listing, tmp_path / "none")
    evaluation = run(listing, tmp_path / "out", reference_list=other)
    assert {result.references for result in evaluation.results} == {("s11",)}


def test_a_run_stops_where_nothing_can_be_written(listing: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "cases" / "s0_b.0.json").mkdir(parents=True)  # in the way
    oracle = Oracle(listing.parent)
    with pytest.raises(VolumeWriteError, match=r"s0_b\.0\.json"):
        run(listing, tmp_path / "out", oracle)
    assert len(oracle.calls) == 2
    (tmp_path / "file").touch()
    with pytest.raises(VolumeWriteError, match=r"file.* cannot be made"):
        run(listing, tmp_path / "file" / "out")
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged"):
        run(listing, tmp_path / "out")


def test_labels_are_merged_as_in_training(listing: Path, tmp_path: Path) -> None:
    edit(listing, merge={"2": 1}, labels={"1": "block"})
    seen: list[set[int]] = []

    def solve(query: Volume, references: Sequence[Reference], task: Task, **_: Any) -> Prediction:
        seen.append({int(value) for value in np.unique(references[0].label.array)})
        return Prediction(query.with_array(np.zeros(SHAPE, np.uint8)), None)

    (result,) = run(listing, tmp_path / "out", solve, limit=1).results
    assert seen == [{0, 1}]
    expected_ml = np.count_nonzero(truth_of(0)) * 4 / 1000
    assert result.scores[0].truth_ml == pytest.approx(expected_ml)  # type: ignore[union-attr]


# --- one labelled slice ---


def test_with_one_slice_the_query_is_its_own_example_and_that_slice_does_not_count(listing: Path, tmp_path: Path
                                                                                 ) -> None:
    calls: list[tuple[Sequence[Reference], int]] = []

    def keeps_what_was_given(query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                             hole: Volume | None) -> Prediction:
        calls.append((references, plane))
        return Prediction(references[0].label, None)

    evaluation = run(listing, tmp_path / "out", keeps_what_was_given, one_slice=True)
    assert dices(evaluation) == [0.0] * 8
    for (references, plane), result in zip(calls, evaluation.results, strict=True):
        (reference,) = references
        number = result.facts["labelled_slice"]
        assert (plane, number) == (2, 2)  # both labels, in slices 2 and 3
        assert reference.slices == (2,)
        assert reference.label.array[:, :, [n for n in range(6) if n != number]].sum() == 0
    assert dices(run(listing, tmp_path / "oracle", one_slice=True)) == [1.0] * 8


def test_there_is_nothing_to_draw_for_one_slice(listing: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        run(listing, tmp_path / "out", one_slice=True, draws=2)
    with pytest.raises(ValueError, match="at least 1 case and 1 draw"):
        run(listing, tmp_path / "out", draws=0)


def test_labels_that_the_slice_does_not_show_are_not_counted(listing: Path, tmp_path: Path) -> None:
    for name in ("s0_a", "s0_b", "s1", "s2"):
        label = truth_of(0)
        label[:, :, 0][2:4, 2:4] = 3  # nowhere together with both others
        save(label, listing.parent / "labels" / f"{name}.nii.gz")
    edit(listing, labels={"1": "low", "2": "high", "3": "rare"})
    (result,) = run(listing, tmp_path / "out", one_slice=True, plane="acquisition", limit=1).results
    assert [score.label for score in result.scores] == [1, 2]  # type: ignore[union-attr]
    assert result.remarks == ("not counted, because no reference shows it: label 3",)


# --- image to image ---


def same(query: Volume, *_: Any, **__: Any) -> Prediction:
    return Prediction(query, None)


def test_denoising_makes_noisy_queries_and_noisy_examples(listing: Path, tmp_path: Path) -> None:
    seen: list[Reference] = []

    def solve(query: Volume, references: Sequence[Reference], task: Task, *, plane: int, hole: Volume | None
              ) -> Prediction:
        seen.extend(references)
        return Prediction(query, None)

    evaluation = run(listing, tmp_path / "out", solve, kind="denoising", sigma=0.2)
    for result in evaluation.results:
        (score,) = result.scores
        assert score.psnr_db == score.given_psnr_db == pytest.approx(16, abs=2)  # type: ignore[union-attr]
    assert all(not np.array_equal(reference.image.array, reference.label.array) for reference in seen)
    again = run(listing, tmp_path / "again", solve, kind="denoising", sigma=0.2)
    assert [result.scores for result in again.results] == [result.scores for result in evaluation.results]


def test_inpainting_hides_what_is_in_the_hole(listing: Path, tmp_path: Path) -> None:
    def solve(query: Volume, references: Sequence[Reference], task: Task, *, plane: int, hole: Volume | None
              ) -> Prediction:
        assert hole is not None
        inside = hole.array > 0
        assert np.unique(query.array[inside]).size == 1
        return Prediction(query.with_array(np.where(inside, 120, query.array)), None)

    evaluation = run(listing, tmp_path / "out", solve, kind="inpainting", most_slices=3)
    assert not evaluation.failures
    for result in evaluation.results:
        assert {score.region for score in result.scores} == {"whole", "hole"}  # type: ignore[union-attr]
        assert result.n_slices == 3


def test_directed_pairs_are_read_as_they_are(tmp_path: Path) -> None:
    items = []
    for subject in range(3):
        clean = image_of(subject)
        holed = clean.copy()
        holed[8:12, 8:12] = 0
        files = {"source": holed, "target": clean}
        items.append({"subject": f"s{subject}", "task": "inpainting"} | {
            key: str(save(array, tmp_path / key / f"{subject}.nii.gz")) for key, array in files.items()})
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"test": items[:1], "references": items[1:]}))

    def solve(query: Volume, references: Sequence[Reference], task: Task, *, plane: int, hole: Volume | None
              ) -> Prediction:
        assert hole is not None
        assert hole.array.sum() == 4 * 4 * 6
        assert references[0].hole is not None
        assert references[0].hole.array.sum() == 4 * 4 * 6
        return Prediction(query.with_array(image_of(0)), None)

    (result,) = run(path, tmp_path / "out", solve, kind="inpainting").results
    assert [score.mae for score in result.scores] == [0.0, 0.0]  # type: ignore[union-attr]


def test_synthesis_goes_from_one_contrast_to_another_and_skips_who_has_not_both(tmp_path: Path) -> None:
    entries = []
    for subject in range(4):
        entry = {"subject": f"s{subject}", "t1": str(save(image_of(subject), tmp_path / f"{subject}_t1.nii.gz")),
                 "t2": str(save(255 - image_of(subject), tmp_path / f"{subject}_t2.nii.gz"))}
        entries.append(entry)
    del entries[1]["t2"]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"role": "train", "training": entries[2:], "test": entries[:2]}))

    def invert(query: Volume, references: Sequence[Reference], task: Task, *, plane: int, hole: Volume | None
               ) -> Prediction:
        assert np.allclose(references[0].label.array, 255 - references[0].image.array)
        return Prediction(query.with_array(255 - query.array), None)

    evaluation = run(path, tmp_path / "out", invert, kind="synthesis", source="t1", target="t2")
    assert [(result.case, result.scores[0].mae) for result in evaluation.results] == [  # type: ignore[union-attr]
        ("s0", pytest.approx(0, abs=1e-6))]
    assert evaluation.skipped == {"s1": "s1 has no contrast 't2', only t1"}
    with pytest.raises(ValueError, match="--source t1 --target t2"):
        run(path, tmp_path / "none", invert, kind="synthesis")


@pytest.mark.parametrize(("settings", "reason"), [
    ({"n_references": 0}, "at least 1 reference"),
    ({"one_slice": True, "kind": "denoising"}, "belongs to segmentation"),
    ({"one_slice": True, "reference_list": Path("x")}, "its own example"),
    ({"plane": "acquisition"}, "one labelled slice"),
    ({"most_slices": 3}, "scored in 3D"),
    ({"sigma": 0.0, "kind": "denoising"}, "sigma"),
    ({"tolerance_mm": -1.0}, "0 mm")])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        EvaluationSettings(Path("list.json"), **settings)


# --- files ---


def test_files_are_matched_by_name_and_the_rest_is_listed(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    for name in ("a", "a_1", "b", "c"):
        save(array, tmp_path / "truth" / f"{name}.nii.gz")
    for name in ("a", "a_1_seg", "sub/b-pred", "cc"):  # the last is not c
        save(array, tmp_path / "pred" / f"{name}.nii.gz")
    found = match_files(tmp_path / "pred", tmp_path / "truth")
    assert [(match.name, match.prediction.name) for match in found.pairs] == [
        ("a", "a.nii.gz"), ("a_1", "a_1_seg.nii.gz"), ("b", "b-pred.nii.gz")]
    assert found.unmatched == {"truth without prediction": [str(tmp_path / "truth" / "c.nii.gz")],
                               "prediction without truth": [str(tmp_path / "pred" / "cc.nii.gz")]}


def test_files_of_a_datalist_are_found_by_image_label_or_subject(listing: Path, tmp_path: Path) -> None:
    for name in ("s0_a", "s0_b_trans", "s1"):
        save(truth_of(0), tmp_path / "pred" / f"{name}.nii.gz")
    found = match_files(tmp_path / "pred", listing)
    assert [(match.subject, match.prediction.name) for match in found.pairs] == [
        ("s0", "s0_a.nii.gz"), ("s0", "s0_b_trans.nii.gz"), ("s1", "s1.nii.gz")]
    assert [Path(path).name for path in found.unmatched["truth without prediction"]] == ["s2.nii.gz"]


def test_two_predictions_for_one_truth_are_refused_unless_one_has_just_its_name(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    save(array, tmp_path / "truth" / "a.nii.gz")
    for name in ("a_first", "a_second"):
        save(array, tmp_path / "pred" / f"{name}.nii.gz")
    with pytest.raises(ValueError, match=r"two files for a: a_first.nii.gz and a_second.nii.gz"):
        match_files(tmp_path / "pred", tmp_path / "truth")
    save(array, tmp_path / "pred" / "a.nii.gz")
    (match,) = match_files(tmp_path / "pred", tmp_path / "truth").pairs
    assert match.prediction.name == "a.nii.gz"


def test_folders_without_anything_in_common_are_refused(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    save(array, tmp_path / "truth" / "a.nii.gz")
    save(array, tmp_path / "pred" / "z.nii.gz")
    with pytest.raises(ValueError, match=r"no file in .*pred has the name of one in .*truth: predictions z; truths a"):
        match_files(tmp_path / "pred", tmp_path / "truth")
    with pytest.raises(FileNotFoundError, match=r"--predictions .*none is no folder"):
        match_files(tmp_path / "none", tmp_path / "truth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image files"):
        match_files(tmp_path / "empty", tmp_path / "truth")


# --- the command ---


def mvg(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def said(result: Any) -> str:
    return re.sub(r"[\s│]+", " ", result.output)


def test_command_compares_files_of_other_programs(listing: Path, tmp_path: Path) -> None:
    wrong = truth_of(1)
    wrong[wrong == 2] = 0
    for name, label in {"s0_a": truth_of(0), "s0_b": truth_of(0), "s1": wrong}.items():
        save(label, tmp_path / "pred" / f"{name}.nii.gz")
        save(np.full(SHAPE, 0.5, np.float32), tmp_path / "sure" / f"{name}.nii.gz")
    save(truth_of(1), tmp_path / "pred" / "stranger.nii.gz")
    out = tmp_path / "out"
    given = ("--predictions", tmp_path / "pred", "--truth", listing, "--out", out)
    result = mvg(*given, "--confidence", tmp_path / "sure")
    assert result.exit_code == 0, result.output
    assert f"Warning: truth without prediction: {listing.parent / 'labels' / 's2.nii.gz'}" in said(result)
    assert f"Warning: prediction without truth: {tmp_path / 'pred' / 'stranger.nii.gz'}" in said(result)
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert [(row["case"], row["name"], row["dice"], row["empty"]) for row in rows[-2:]] == [
        ("s1", "low", "1", ""), ("s1", "high", "0", "prediction")]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(0.75)  # s0: 1, s1: 0.5
    assert summary["confidence"]["all"]["curve"][0]["confidence"] == 0.5
    for name in ("report.html", "report.md", "plots/boxes.png", "plots/examples.png", "plots/confidence.png"):
        assert (out / name).stat().st_size > 1000
    again = mvg(*given)
    assert again.exit_code == 2
    assert "--overwrite" in said(again)
    compared = mvg(*given, "--overwrite", "--against", out)
    assert compared.exit_code == 0, compared.output
    assert json.loads((out / "summary.json").read_text())["against"]["dice"]["mean"] == 0


def test_command_names_the_files_whose_grids_differ_and_scores_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(truth_of(0), tmp_path / "truth" / f"{name}.nii.gz")
        save(truth_of(0), tmp_path / "pred" / f"{name}.nii.gz")
    save(truth_of(0), tmp_path / "pred" / "b.nii.gz", (1.0, 1.0, 5.0))
    out = tmp_path / "out"
    result = mvg("--predictions", tmp_path / "pred", "--truth", tmp_path / "truth", "--out", out)
    assert result.exit_code == 2
    assert (f"Failed: b: {tmp_path / 'pred' / 'b.nii.gz'} and {tmp_path / 'truth' / 'b.nii.gz'} lie on different grids "
            "(spacing 1 x 1 x 5 mm and 1 x 1 x 4 mm)") in said(result)
    assert "Error: 1 of 2 cases failed" in said(result)
    assert "lie on different grids" in (out / "report.md").read_text()
    assert json.loads((out / "summary.json").read_text())["cases"] == 1
    only = mvg("--predictions", tmp_path / "pred", "--truth", tmp_path / "truth", "--out", out, "--overwrite",
               "--names", save_names(tmp_path))
    assert only.exit_code == 2
    assert {row["name"] for row in csv.DictReader((out / "metrics.csv").open())} == {"lower"}


def save_names(folder: Path) -> Path:
    path = folder / "names.json"
    path.write_text('{"1": "lower"}')
    return path


def test_command_compares_images(tmp_path: Path) -> None:
    hole = np.zeros(SHAPE, np.uint8)
    hole[5:9, 5:9] = 1
    for subject in range(3):
        image = image_of(subject)
        files = {"truth": image, "pred": np.where(hole, 100, image), "masks": hole, "seen": np.where(hole, 0, image)}
        for folder, array in files.items():
            save(array.astype(np.uint8 if folder == "masks" else np.float32), tmp_path / folder / f"{subject}.nii.gz")
    given = ("--predictions", tmp_path / "pred", "--truth", tmp_path / "truth", "--task", "inpainting", "--out",
             tmp_path / "out")
    refused = mvg(*given)
    assert refused.exit_code == 2
    assert "its hole is not known" in said(refused)
    result = mvg(*given, "--holes", tmp_path / "masks", "--images", tmp_path / "seen")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["gain"]["psnr_db"]["difference"]["low"] > 0
    assert summary["parts"]["whole"]["metrics"]["mae"]["mean"] < summary["parts"]["hole"]["metrics"]["mae"]["mean"]


def test_command_runs_the_network_and_resumes(listing: Path, tmp_path: Path, weights: Path) -> None:
    given = (listing, "--weights", weights, "--threads", 1, "--device", "cpu", "--out", tmp_path / "out")
    result = mvg(*given, "--limit", 2, "--keep-predictions")
    assert result.exit_code == 0, result.output
    predictions = sorted((tmp_path / "out" / "predictions").iterdir())
    assert [path.name for path in predictions] == ["s0_a.0.nii.gz", "s0_b.0.nii.gz"]
    assert read_volume(predictions[0]).geometry.is_close(Geometry(SHAPE, np.diag([*SPACING, 1])))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cases").iterdir()}
    assert mvg(*given).exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cases").iterdir()}
    assert len(after) == 2 * len(before)
    assert before.items() <= after.items()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert len(settings["solver"]["checkpoint_sha256"]) == 64
    changed = mvg(*given, "--references", 2)
    assert changed.exit_code == 2
    assert "other settings (n_references)" in said(changed)


@pytest.mark.parametrize(("arguments", "reason"), [
    ((), "say what is evaluated"), (("list.json", "--predictions", "p", "--truth", "t"), "say what is evaluated"),
    (("--predictions", "p"), "say what is evaluated"), (("list.json", "--names", "n.json"), "--names goes with"),
    (("missing.json",), "no datalist"), (("list.json", "--against", "nowhere"), "nowhere does not exist"),
    (("--predictions", "p", "--truth", "t"), "is no folder")])
def test_command_refuses_what_makes_no_sense(arguments: tuple[str, ...], reason: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = mvg(*arguments, "--weights", weights, "--out", "out")
    assert result.exit_code == 2, result.output
    assert reason in said(result)
    assert "Traceback" not in result.output
    assert not Path("out").exists()


def test_command_says_which_splits_there_are(listing: Path, tmp_path: Path, weights: Path) -> None:
    result = mvg(listing, "--split", "validation", "--weights", weights, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{listing}: has no items in 'validation'" in said(result)
    assert "test, references" in said(result)


def test_command_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    real = importlib.util.find_spec
    for package in ("monai", "matplotlib"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest, missing=package: None if name == missing
                            else real(name, *rest))
        result = mvg("list.json", "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert package in said(result)
        assert "pip install" in said(result)

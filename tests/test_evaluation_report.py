"""From scored cases to tables, statements and pages; and the handler that makes them in MONAI's engines."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.engines.evaluator import SupervisedEvaluator
from monai.transforms.compose import Compose

from mvg_core.evaluation.calibration import Reliability
from mvg_core.evaluation.handlers import SubjectReport
from mvg_core.evaluation.pictures import COLOURS, TILE, image_strip, label_strip
from mvg_core.evaluation.plots import draw_boxes, draw_confidence, draw_examples
from mvg_core.evaluation.report import PRIVACY, write_evaluation
from mvg_core.evaluation.results import CaseResult, Failure, ImageScore, LabelScore, by_subject, to_csv
from mvg_core.evaluation.runner import CASES, Evaluation
from mvg_core.evaluation.summary import ranked, summarise
from mvg_core.preview import write_picture
from mvg_core.tasks import TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWriteError


def label_score(dice: float, label: int = 1, **changes: Any) -> LabelScore:
    score = LabelScore(label, {1: "liver", 2: "<b>spleen|"}.get(label, ""), dice, dice / (2 - dice), 10 * (1 - dice),
                       dice, "", 4, 0.25, 90.0, 100.0, 0.8 * dice + 0.1)
    return dataclasses.replace(score, **changes)


def case(subject: str, *scores: LabelScore | ImageScore, draw: int = 0, name: str = "", kind: TaskKind = "segmentation",
         calibrated: bool = True) -> CaseResult:
    calibration = {}
    if calibrated and kind == "segmentation":
        part = Reliability.of(np.array([0.95, 0.95, 0.3]), np.array([True, True, False]))
        calibration = {"all": part, "labelled": part}
    return CaseResult(name or subject, subject, draw, kind, scores, ("other",), calibration, 2.0, 10, ("a remark",),
                      {"plane": "axial"})


DICE = {"s1": 0.9, "s2": 0.8, "s3": 0.4, "s4": 0.7}
RESULTS = tuple(case(subject, label_score(dice), label_score(dice / 2, 2)) for subject, dice in DICE.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report, with two failures and everything that can be said."""
    out = tmp_path_factory.mktemp("report")
    for shade, result in enumerate(RESULTS):
        (out / CASES).mkdir(exist_ok=True)
        write_picture(np.full((TILE, 4 * TILE, 3), 40 * shade, np.uint8), out / CASES / f"{result.key}.png")
    evaluation = Evaluation("segmentation", RESULTS, (Failure("s5", 0, "is <damaged>"),), {"s6": "has no label"},
                            {"truth without prediction": ["lost.nii.gz"], "prediction without truth": []},
                            {"split": "test", "tolerance_mm": 2.0})
    write_evaluation(evaluation, out)
    return out


# --- cases ---


def test_cases_survive_json() -> None:
    for result in (case("a", label_score(0.5, hd95_mm=math.nan, empty="both")),
                   case("b", ImageScore("hole", 20.0, math.nan, 0.1), kind="inpainting")):
        again = CaseResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
        assert again.to_json() == result.to_json()
    with pytest.raises(ValueError, match="no scores of a case"):
        CaseResult.from_json({"kind": "segmentation"})


def test_the_table_has_a_row_for_each_case_and_label_and_leaves_empty_what_is_not_counted() -> None:
    table = to_csv([case("a", label_score(0.5), label_score(math.nan, 2, empty="both"))])
    rows = list(csv.DictReader(table.splitlines()))
    assert [(row["subject"], row["label"], row["dice"], row["empty"]) for row in rows] == [
        ("a", "1", "0.5", ""), ("a", "2", "", "both")]
    assert rows[0]["references"] == "other"
    with pytest.raises(ValueError, match="one task"):
        to_csv([case("a", label_score(0.5)), case("b", ImageScore("whole", 1, 1, 1), kind="denoising")])


def test_a_subject_is_the_mean_of_its_cases_draws_and_labels_that_count() -> None:
    results = [case("a", label_score(0.2), label_score(math.nan, 2), name="a1"), case("a", label_score(0.6), name="a2"),
               case("b", label_score(math.nan))]
    assert by_subject(results, "dice")["a"] == pytest.approx(0.4)
    assert math.isnan(by_subject(results, "dice")["b"])
    assert math.isnan(by_subject(results, "dice", "2")["a"])
    image = [case("a", ImageScore("whole", 30, 1, 0), ImageScore("hole", 10, 1, 0), kind="inpainting")]
    assert by_subject(image, "psnr_db") == {"a": 10.0}


# --- the summary ---


def test_summary_means_over_subjects_not_over_cases() -> None:
    # Three cases of one subject weigh as much as one of another.
    results = (*(case("a", label_score(1.0), name=f"a{n}") for n in range(3)), case("b", label_score(0.0)))
    summary = summarise(Evaluation("segmentation", results))
    assert summary["metrics"]["dice"]["mean"] == 0.5
    assert (summary["subjects"], summary["cases"], summary["metrics"]["dice"]["n"]) == (2, 4, 2)
    json.dumps(summary, allow_nan=False)


def test_summary_of_labels() -> None:
    results = (*RESULTS, case("s7", label_score(0.0, empty="prediction"), label_score(math.nan, 2, empty="both")))
    parts = summarise(Evaluation("segmentation", results))["parts"]
    assert parts["1"]["metrics"]["dice"]["mean"] == pytest.approx(np.mean([*DICE.values(), 0]))
    assert parts["2"]["metrics"]["dice"]["n"] == 4
    assert (parts["1"]["empty"]["prediction"], parts["2"]["empty"]["both"]) == (1, 1)
    assert parts["1"]["volume_difference_ml"]["mean"] == pytest.approx(-10)


def test_the_worst_subjects_come_first_by_the_metrics_direction() -> None:
    assert [subject for subject, _ in ranked(RESULTS)] == ["s3", "s4", "s2", "s1"]
    assert summarise(Evaluation("segmentation", RESULTS))["worst"][0] == {"subject": "s3", "dice": 0.3}


def test_confidence_is_related_to_dice_and_to_being_right() -> None:
    summary = summarise(Evaluation("segmentation", RESULTS))["confidence"]
    assert summary["correlation_with_dice"]["mean"] == pytest.approx(1)
    # Bins of two voxels at 0.95, right, and of one at 0.3, wrong.
    assert summary["all"]["expected_calibration_error"]["mean"] == pytest.approx((0.1 + 0.3) / 3, abs=1e-6)
    assert [row["voxels"] for row in summary["labelled"]["curve"]] == [4, 8]


def test_draws_of_references_show_their_spread_and_the_worst() -> None:
    results = tuple(case(subject, label_score(dice + 0.05 * draw), draw=draw)
                    for subject, dice in DICE.items() for draw in range(3))
    spread = summarise(Evaluation("segmentation", results))["draws_spread"]
    assert spread["range_within_subject"]["mean"] == pytest.approx(0.1)
    assert spread["worst_draw"]["mean"] == pytest.approx(0.7)
    assert spread["mean_of_each_draw"]["2"]["mean"] == pytest.approx(0.8)


def test_what_was_given_is_compared_in_pairs() -> None:
    scores = {subject: ImageScore("whole", 20 + 10 * dice, 0.9, 0.1, 18 + 10 * dice, 0.8, 0.2)
              for subject, dice in DICE.items()}
    results = tuple(case(subject, score, kind="denoising") for subject, score in scores.items())
    gain = summarise(Evaluation("denoising", results))["gain"]["psnr_db"]
    assert (gain["difference"]["mean"], gain["difference"]["low"]) == (pytest.approx(2), pytest.approx(2))


def test_another_evaluation_is_compared_in_pairs_over_what_both_have(tmp_path: Path) -> None:
    other = tmp_path / "metrics.csv"
    theirs = [case(subject, label_score(dice - 0.1)) for subject, dice in DICE.items()]
    other.write_text(to_csv([*theirs, case("another", label_score(0.0))]))
    found = summarise(Evaluation("segmentation", RESULTS), other)["against"]
    assert found["dice"]["n"] == 4
    assert found["dice"]["mean"] == pytest.approx(0.1)  # label 2 is not in the other table
    assert found["hd95_mm"]["mean"] == pytest.approx(-1)


@pytest.mark.parametrize(("content", "reason"), [
    ("a,b\n1,2\n", "no metrics.csv of an evaluation of segmentation"),
    (to_csv([case("x", label_score(0.5))]), "no query and label in common"),
    (None, "cannot be read")])
def test_a_table_that_cannot_be_compared_is_refused(content: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"metrics.csv .*{reason}"):
        summarise(Evaluation("segmentation", RESULTS), path)


def test_nothing_scored_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no case was scored"):
        write_evaluation(Evaluation("segmentation", ()), tmp_path)


# --- pages ---


class Page(HTMLParser):
    """What a page refers to, and whether all its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_no_network(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in text
    assert not page.tags & {"script", "link", "iframe"}


def test_names_of_files_and_labels_are_no_markup(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;spleen|" in page
    assert "<b>" not in page
    assert "<damaged>" not in page
    assert "<b>spleen\\|" in (folder / "report.md").read_text(encoding="utf-8")


def test_pages_say_what_they_may_show_what_failed_and_what_was_left_over(folder: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        for needed in (PRIVACY, "liver", "0.700", "1 cases failed", "damaged", "lost.nii.gz", "has no label",
                       "a remark", "percentile bootstrap"):
            assert needed in text, (name, needed)
        assert "Prediction without truth" not in text  # there is none


def test_markdown_names_the_plots_that_exist(folder: Path) -> None:
    named = re.findall(r"!\[\w+\]\(([^)]+)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert sorted(named) == ["plots/boxes.png", "plots/confidence.png", "plots/examples.png"]
    assert all((folder / name).is_file() for name in named)


def test_files_for_programs(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(0.75 * 0.7)
    assert summary["failures"] == [{"case": "s5", "draw": 0, "reason": "is <damaged>"}]
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 8
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()  # in the way
    with pytest.raises(VolumeWriteError, match=r"report\.html"):
        write_evaluation(Evaluation("segmentation", RESULTS), tmp_path)


# --- pictures ---


def pixels(content: bytes | None, path: Path) -> np.ndarray:
    assert content is not None
    path.write_bytes(content)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_examples_are_the_best_the_median_and_the_worst(tmp_path: Path) -> None:
    shades = {"s1": 10, "s2": 60, "s3": 110, "s4": 160}  # best s1, worst s3; s4 is the lower of the middle two
    for result in RESULTS:
        write_picture(np.full((TILE, 4 * TILE, 3), shades[result.subject], np.uint8), tmp_path / f"{result.key}.png")
    drawn = pixels(draw_examples(RESULTS, tmp_path), tmp_path / "drawn.png")
    column = drawn[:, drawn.shape[1] // 2 + 40, 0]
    seen = [shade for shade in dict.fromkeys(column.tolist()) if np.count_nonzero(column == shade) > 150]
    assert [shade for shade in seen if shade < 200] == [10, 160, 110]


def test_without_pictures_there_are_no_examples(tmp_path: Path) -> None:
    assert draw_examples(RESULTS, tmp_path) is None
    assert draw_confidence([case("a", label_score(0.5), calibrated=False)]) is None


def test_boxes_show_every_subject(tmp_path: Path) -> None:
    few, many = (pixels(draw_boxes(results), tmp_path / "boxes.png") for results in (RESULTS[:1], RESULTS))
    blue = [np.count_nonzero((one[..., 2].astype(int) - one[..., 0]) > 60) for one in (few, many)]
    assert blue[1] > 2 * blue[0] > 0


def test_label_strip_shows_the_slice_with_most_truth_that_was_not_given() -> None:
    truth = np.zeros((16, 16, 4), np.uint8)
    truth[2:14, 2:14, 1], truth[4:12, 4:12, 2] = 1, 1
    volume = Volume.from_array(truth)
    image = Volume.from_array(np.random.default_rng(0).random((16, 16, 4), dtype=np.float32))
    strip = label_strip(image, volume, volume.with_array(np.zeros_like(truth)), 2, confidence=image, given=[1])
    assert strip.shape == (TILE, 4 * TILE, 3)
    coloured = (strip == COLOURS[1]).all(axis=-1)
    assert coloured[:, TILE : 2 * TILE].any()
    assert not coloured[:, 2 * TILE : 3 * TILE].any()
    # The border of 8 x 8 of 16 pixels, not that of 12 x 12.
    rows = np.flatnonzero(coloured.any(axis=1))
    assert rows[-1] - rows[0] + 1 == pytest.approx(TILE / 2, abs=2)
    assert label_strip(None, volume, volume, 2).shape == (TILE, 3 * TILE, 3)


def test_image_strip_shows_where_the_answer_is_wrong() -> None:
    target = np.tile(np.linspace(0, 100, 16, dtype=np.float32), (16, 1))[:, :, None]
    painted = target.copy()
    painted[:8] += 50
    shown, answer = Volume.from_array(target), Volume.from_array(painted)
    strip = image_strip(shown, answer, shown, 2, same_units=True)
    error = strip[:, 3 * TILE :].astype(int).sum(axis=-1)
    halves = sorted((error[:, : TILE // 2 - 8].mean(), error[:, TILE // 2 + 8 :].mean()))
    assert halves[1] > 5 * halves[0]  # a picture's index i runs along its columns


# --- the handler ---


class Shifted(torch.nn.Module):
    """Answers with the image, one step further along the first axis."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.roll(torch.as_tensor(image), 1, dims=2)


def samples(n: int, *, spacing: float = 3.0) -> list[dict[str, Any]]:
    """Cubes of 4 x 4 x 4 voxels, in which image and label are the same."""
    made = []
    for number in range(n):
        cube = torch.zeros((1, 12, 12, 6))
        cube[:, 3:7, 4:8, 1:5] = 1
        image, label = (MetaTensor(cube.clone(), affine=torch.diag(torch.tensor([spacing, 1.0, 1.0, 1.0])),
                                   meta={"filename_or_obj": f"/data/case_{number}.nii.gz"}) for _ in range(2))
        made.append({"image": image, "label": label, "subject": f"p{number // 2}"})
    return made


def run_evaluator(handler: SubjectReport, data: list[dict[str, Any]], **settings: Any) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(Dataset(data), batch_size=2), Shifted(),
                                    val_handlers=[handler], **settings)
    evaluator.run()
    return evaluator


@pytest.mark.parametrize("decollate", [True, False])
def test_the_handler_reports_every_subject_of_an_evaluator(decollate: bool, tmp_path: Path) -> None:
    evaluator = run_evaluator(SubjectReport(tmp_path, labels={"0": "background", "1": "cube"}), samples(3),
                              decollate=decollate)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["case"], row["subject"], row["name"]) for row in rows] == [
        ("case_0", "p0", "cube"), ("case_1", "p0", "cube"), ("case_2", "p1", "cube")]
    # 3 of 4 layers overlap; the surfaces are one step of 3 mm apart.
    assert [float(row["dice"]) for row in rows] == [pytest.approx(0.75)] * 3
    assert [float(row["hd95_mm"]) for row in rows] == [pytest.approx(3.0)] * 3
    assert evaluator.state.metrics["subject_dice"] == pytest.approx(0.75)
    assert json.loads((tmp_path / "summary.json").read_text())["subjects"] == 2
    assert (tmp_path / "report.html").is_file()


def test_the_handler_reads_one_hot_answers_and_starts_anew_at_every_run(tmp_path: Path) -> None:
    def one_hot(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "pred": torch.cat([1 - sample["pred"], sample["pred"]]),
                "label": torch.cat([1 - sample["label"], sample["label"]])}

    handler = SubjectReport(tmp_path)
    for _ in range(2):
        run_evaluator(handler, samples(2), postprocessing=Compose([one_hot]))
    assert json.loads((tmp_path / "summary.json").read_text())["cases"] == 2
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["dice"]["mean"] == pytest.approx(0.75)


def test_the_handler_scores_slices_and_images(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, 400).reshape(1, 20, 20)
    data = [{"image": ramp, "label": ramp, "subject": "a"}, {"image": ramp, "label": ramp, "subject": "b"}]
    evaluator = run_evaluator(SubjectReport(tmp_path, task="denoising"), data)
    assert 0 < evaluator.state.metrics["subject_ssim"] < 1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["subject"], row["region"]) for row in rows] == [("a", "whole"), ("b", "whole")]
    assert float(rows[0]["given_mae"]) == 0


def test_slices_of_one_file_are_cases_of_one_subject(tmp_path: Path) -> None:
    data = samples(2)
    for sample in data:
        del sample["subject"]
        for key in ("image", "label"):
            sample[key].meta["filename_or_obj"] = "/data/volume.nii.gz"
    run_evaluator(SubjectReport(tmp_path), data)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["case"], row["subject"]) for row in rows] == [("volume", "volume"), ("volume~0.1", "volume")]


def test_the_handler_refuses_what_it_cannot_score(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown"):
        SubjectReport(tmp_path, task="sorting")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no 'label'"):
        run_evaluator(SubjectReport(tmp_path), [{"image": torch.zeros(1, 8, 8)} for _ in range(2)])
    with pytest.raises(ValueError, match="no 'hole'"):
        run_evaluator(SubjectReport(tmp_path, task="inpainting"), samples(2))

    def cropped(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "pred": sample["pred"][:, 1:]}

    with pytest.raises(ValueError, match=r"case_0: .*shapes \(11, 12, 6\) and \(12, 12, 6\)"):
        run_evaluator(SubjectReport(tmp_path), samples(2), postprocessing=Compose([cropped]))


WORKER = """
import sys
from pathlib import Path
import ignite.distributed as idist
import torch.distributed
sys.path.insert(0, sys.argv[2])
from test_evaluation_report import samples, run_evaluator
from mvg_core.evaluation.handlers import SubjectReport
torch.distributed.init_process_group("gloo")
mine = samples(5)[idist.get_rank() : 5 : 2] + ([samples(1)[0]] if idist.get_rank() else [])  # padded, as samplers do
evaluator = run_evaluator(SubjectReport(Path(sys.argv[1])), mine)
assert abs(evaluator.state.metrics["subject_dice"] - 0.75) < 1e-6
torch.distributed.destroy_process_group()
"""


def test_several_processes_write_one_report_with_every_case_once(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0",
               "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(script), str(tmp_path / "out"),
               str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert sorted(row["case"] for row in rows) == [f"case_{number}" for number in range(5)]

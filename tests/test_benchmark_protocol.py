"""The benchmark: what its methods answer, what is kept of it, and how its verdicts follow from its numbers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.protocol import execute, inputs, keeping, tables  # noqa: E402
from benchmarks.protocol import report as report_module  # noqa: E402
from benchmarks.protocol.learned import recipe, universeg_loss  # noqa: E402
from benchmarks.protocol.learned_rows import UniverSegBackend, unet_of  # noqa: E402
from benchmarks.protocol.low_dose import low_dose_slice  # noqa: E402
from benchmarks.protocol.questions import UNSEEN, Question, all_questions  # noqa: E402
from benchmarks.protocol.restore_classical import (  # noqa: E402
    DENOISERS,
    InpaintingSolver,
    IntensityMapSolver,
    noise_of,
    wavelet,
)
from benchmarks.protocol.rows import Row, all_rows, is_segmentation  # noqa: E402
from benchmarks.protocol.segment_classical import CopySolver, RegistrationSolver  # noqa: E402
from benchmarks.protocol.specialist import LESSONS, drawn  # noqa: E402
from benchmarks.protocol.summary import Goal, goals, measure, verdict  # noqa: E402
from benchmarks.protocol.universeg import CrossBlock, UniverSeg  # noqa: E402
from benchmarks.protocol.within import block_bootstrap, psnr, within_subjects  # noqa: E402
from mvg_core.evaluation.queries import only_slice  # noqa: E402
from mvg_core.evaluation.results import CaseResult  # noqa: E402
from mvg_core.predict import Prediction  # noqa: E402
from mvg_core.references import Reference  # noqa: E402
from mvg_core.tasks import Task  # noqa: E402
from mvg_core.training.episodes import Episodes  # noqa: E402
from mvg_core.volume import Geometry, Volume  # noqa: E402
from mvg_core.volume_io import read_volume, write_volume  # noqa: E402

SHAPE = (24, 20, 6)


def label_of(shift: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[5 + shift : 12 + shift, 6:14, 1:5] = 1
    return label


def image_of(shift: int) -> np.ndarray:
    noise = np.random.default_rng(shift).normal(0, 4, SHAPE)
    return (20 + 150 * label_of(shift) + noise).astype(np.float32)


def volume(array: np.ndarray) -> Volume:
    return Volume.from_array(array, (1.0, 1.0, 4.0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set `blocks`: three subjects to be solved, the first with two items, and three examples."""
    folder = tmp_path / "data" / "blocks"
    for number in range(7):
        for kind, array in (("images", image_of(number % 5)), ("labels", label_of(number % 5))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_volume(volume(array + (np.float32(number) if kind == "images" else 0)), folder / kind /
                         f"s{number}.nii.gz")

    def item(number: int, subject: str) -> dict[str, str]:
        return {"subject": subject, "image": f"images/s{number}.nii.gz", "label": f"labels/s{number}.nii.gz"}

    listing = {"labels": {"0": "background", "1": "block"},
               "training": [item(4, "d"), item(5, "e"), item(6, "f")],
               "test": [item(0, "a"), item(1, "a"), item(2, "b"), item(3, "c")]}
    (folder / "dataset.json").write_text(json.dumps(listing))
    return tmp_path / "data"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keeping, "ANSWERS", tmp_path / "answers")
    monkeypatch.setattr(execute, "PREPARED", tmp_path / "inputs")
    return tmp_path / "answers"


QUESTION = Question("A", "blocks_k1", "blocks", "blocks", "segmentation", "1 volume -> new subject",
                    {"n_references": 1}, draws=2)


class Counted:
    """Answers with the example's label, and counts."""

    def __init__(self, value: int = 1) -> None:
        self.calls, self.value = 0, value

    def row(self, name: str = "counted", *, is_ours: bool = False) -> Row:
        return Row(name, name, is_segmentation, lambda _: self.solve, (), lambda _: {"value": self.value}, is_ours)

    def solve(self, query: Volume, references: Any, task: Task, *, plane: int, hole: Volume | None) -> Prediction:
        self.calls += 1
        return Prediction(query.with_array(references[0].label.array.astype(np.uint8) * self.value), None)


# --- what is kept ---


def test_answers_are_kept_until_settings_change(data: Path, kept: Path) -> None:
    row = Counted()
    first = execute.ask(QUESTION, row.row(), data, "test")
    assert (row.calls, len(first.results)) == (8, 8)  # four items, two examples each
    assert execute.ask(QUESTION, row.row(), data, "test").results == first.results
    assert row.calls == 8
    row.value = 0
    execute.ask(QUESTION, row.row(), data, "test")
    assert row.calls == 16
    assert len(list(kept.glob("test/blocks_k1/counted-*"))) == 2


def test_a_limit_counts_subjects_and_is_only_added_to(data: Path, kept: Path) -> None:
    row = Counted()
    assert len(execute.ask(QUESTION, row.row(), data, "test", limit=1, draws=1).results) == 2  # both items of "a"
    assert len(execute.ask(QUESTION, row.row(), data, "test", limit=2, draws=1).results) == 3
    assert row.calls == 3


def test_the_key_changes_with_code_but_not_with_comments(tmp_path: Path) -> None:
    keys = []
    for number, text in enumerate(('"""One."""\nx = 1\n', '"""Two."""\n# why\nx = 1\n', "x = 2\n")):
        path = tmp_path / f"{number}.py"
        path.write_text(text)
        keys.append(keeping.meaning_of(path))
    assert keys[0] == keys[1] != keys[2]


def test_what_an_earlier_state_answered_is_shown_as_such(data: Path, kept: Path) -> None:
    row = Counted()
    execute.ask(QUESTION, row.row(), data, "test", limit=1, draws=1)
    assert tables.read_answers([QUESTION], [row.row()], "test")["blocks_k1", "counted"].is_present
    row.value = 0
    found = tables.read_answers([QUESTION], [row.row()], "test")["blocks_k1", "counted"]
    assert not found.is_present
    assert len(found.results) == 2


def test_prepared_contrasts_show_the_same_slices_and_are_made_again_by_other_code(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "pairs"
    array = np.arange(12, dtype=np.float32) + np.zeros((16, 14, 12), np.float32)
    for name, factor in (("t1", 1), ("t2", 10)):
        (folder / name).mkdir(parents=True)
        write_volume(volume(factor * array), folder / name / "a.nii.gz")
    listing = {"test": [{"subject": "a", "t1": "t1/a.nii.gz", "t2": "t2/a.nii.gz"}]}
    (folder / "dataset.json").write_text(json.dumps(listing))
    made = inputs.prepare("thinned", folder, tmp_path / "inputs")
    shown = [read_volume(made / f"a_{name}.nii.gz") for name in ("t1", "t2")]
    assert shown[0].array.shape == (16, 14, 8)
    assert np.array_equal(10 * shown[0].array, shown[1].array)
    assert shown[0].geometry.is_close(shown[1].geometry)
    (made / "a_t1.nii.gz").unlink()
    inputs.prepare("thinned", folder, tmp_path / "inputs")
    assert not (made / "a_t1.nii.gz").exists()  # nothing was done
    written = json.loads((made / "dataset.json").read_text())
    (made / "dataset.json").write_text(json.dumps({**written, "made_by": "other"}))
    inputs.prepare("thinned", folder, tmp_path / "inputs")
    assert (made / "a_t1.nii.gz").exists()


# --- tables and verdicts ---


def test_differences_are_paired_over_what_both_answered(data: Path, kept: Path) -> None:
    ours, theirs = Counted(1), Counted(0)
    execute.ask(QUESTION, ours.row("ours", is_ours=True), data, "test")
    execute.ask(QUESTION, theirs.row("theirs"), data, "test", limit=2, draws=1)
    rows = [ours.row("ours", is_ours=True), theirs.row("theirs")]
    book = tables.read_answers([QUESTION], rows, "test")
    (dice, _) = tables.differences(book)
    assert dice["n"] == 2
    shared = {result.key for result in book["blocks_k1", "theirs"].results}
    subjects = book["blocks_k1", "ours"].subjects("dice", shared)
    assert dice["mean"] == pytest.approx(sum(subjects.values()) / 2, abs=1e-6)  # the other row scores 0
    made = {row["row"]: row for row in tables.table_rows(book)}
    assert (made["ours"]["subjects"], made["ours"]["cases"], made["ours"]["draws"]) == (3, 4, 2)
    spread = made["ours"]["examples"]
    assert spread["worst"]["mean"] <= made["ours"]["metrics"]["dice"]["mean"]
    goal = Goal("x", "x", ("blocks_k1",), "ours", "dice", ("theirs",), 0.0, "difference", 2.0)
    entry = measure(goal, book)
    assert (entry["baseline"], entry["baseline_value"], entry["met_must"], entry["met_aim"]) == ("theirs", 0, True,
                                                                                                   False)
    both = ("blocks_k1", "absent")
    unknown = measure(Goal("y", "y", both, "ours", "dice", ("theirs",), 0.0, "difference", 2.0), book)
    assert unknown["value"] is None
    assert unknown["met_must"] is None
    text = report_module.markdown({"list": "test", "weights": {"sha256": "0" * 64}, "rows": list(made.values()),
                                   "differences": tables.differences(book)})
    assert "| ours | 3 (2 examples each) |" in text


@pytest.mark.parametrize(("rule", "limit", "numbers", "met"), [
    ("value", 0.7, {"value": 0.7}, True), ("value", 0.7, {"value": 0.69}, False),
    ("value_below", 0.05, {"value": 0.05}, False), ("value_below", 0.05, {"value": 0.04}, True),
    ("difference", 1.0, {"difference": 1.0}, True), ("difference", -0.1, {"difference": -0.11}, False),
    ("difference_low", 0.0, {"difference_low": 0.0}, False), ("difference_low", 0.0, {"difference_low": 0.01}, True),
    ("difference_low", 0.0, {"difference_low": None}, None), ("value", 0.0, {"value": math.nan}, None)])
def test_verdicts(rule: Any, limit: float, numbers: dict[str, float], met: bool | None) -> None:
    assert verdict(rule, limit, numbers) is met


def test_every_goal_asks_a_question_that_its_row_answers() -> None:
    questions, rows = all_questions(), all_rows()
    assert len({goal.id for goal in goals()}) == len(goals())
    for goal in goals():
        for name in goal.questions:
            assert rows[goal.row].suits(questions[name])
        assert all(name in rows for name in goal.baselines)


def test_a_block_bootstrap_knows_when_slices_are_alike() -> None:
    assert block_bootstrap(np.full(8, 0.01)) == pytest.approx((20, 20))
    # A block of two neighbours always holds one of each.
    assert block_bootstrap(np.array([0.001, 0.1] * 4)) == pytest.approx((psnr(0.0505), psnr(0.0505)))
    low, high = block_bootstrap(np.array([0.001, 0.001, 0.001, 0.001, 0.1, 0.1, 0.1, 0.1]))
    assert high - low > 3


def test_within_a_subject_items_without_the_contrast_are_passed_over(tmp_path: Path) -> None:
    array = np.random.default_rng(0).uniform(0, 100, SHAPE).astype(np.float32)
    for name in ("a_t1", "a_t2", "b_t1"):
        write_volume(volume(array), tmp_path / f"{name}.nii.gz")
    items = [{"subject": "a", "t1": "a_t1.nii.gz", "t2": "a_t2.nii.gz"}, {"subject": "b", "t1": "b_t1.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"test": items}))
    settings = {"listing": str(tmp_path / "dataset.json"), "split": "test", "kind": "synthesis", "source": "t1",
                "target": "t2"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "predictions").mkdir()
    write_volume(volume(array), tmp_path / "predictions" / "a.0.nii.gz")
    results = [CaseResult(name, name, 0, "synthesis", ()) for name in "ab"]
    found = within_subjects(tmp_path, results)
    assert found == {"a.0": {"slices": 6, "psnr_db": 100, "low": 100, "high": 100}}


# --- classical rows ---


def test_a_copied_slice_and_a_copied_volume() -> None:
    query, label = volume(image_of(0)), volume(label_of(0))
    given = Reference(query, only_slice(label, 2, 3), "slice 3", (3,))
    found = CopySolver()(query, [given], Task.segmentation({1: ""}), plane=2, hole=None).volume.array
    assert np.array_equal(found, np.repeat(label_of(0)[..., 3:4], 6, axis=2))
    # The same grid stored the other way round and with its axes swapped.
    turned = Geometry((20, 24, 6), query.geometry.affine @ np.array(
        [[0, -1, 0, 23], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    array = label_of(0)[::-1].transpose(1, 0, 2)
    assert np.array_equal(turned.index_to_world((6, 23 - 5, 1)), query.geometry.index_to_world((5, 6, 1)))
    example = Reference(Volume(array.astype(np.float32), turned), Volume(array.copy(), turned), "other")
    found = CopySolver()(query, [example], Task.segmentation({1: ""}), plane=2, hole=None).volume.array
    assert np.array_equal(found, label_of(0))


def test_registration_follows_a_structure_that_copying_loses() -> None:
    truth = np.zeros((48, 40, 5), np.uint8)
    for number in range(5):
        truth[10 + 2 * number : 26 + 2 * number, 10:30, number] = 1
    image = volume(100.0 * truth + np.random.default_rng(0).normal(0, 3, truth.shape))
    given = Reference(image, only_slice(volume(truth), 2, 0), "slice 0", (0,))
    settings = {"slice_smooth": 1.5, "slice_iterations": [30, 30, 30], "smooth": 1.0, "power": 1}
    task = Task.segmentation({1: ""})
    last = [solver(image, [given], task, plane=2, hole=None).volume.array[..., 4] > 0
            for solver in (CopySolver(), RegistrationSolver(settings))]
    overlap = [2 * (one & (truth[..., 4] > 0)).sum() / (one.sum() + truth[..., 4].sum()) for one in last]
    assert overlap[0] < 0.6
    assert overlap[1] > 0.9


def test_denoisers_find_the_noise_and_remove_most_of_it() -> None:
    rows, columns = np.mgrid[:96, :96] / 96
    clean = 0.3 + 0.4 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.1)
    noisy = clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)
    assert noise_of(noisy) == pytest.approx(0.1, rel=0.1)
    for denoise in DENOISERS.values():
        assert np.mean((denoise(noisy, 1.0) - clean) ** 2) < 0.15 * np.mean((noisy - clean) ** 2)
    assert np.abs(wavelet(clean, 1e-9) - clean).max() < 1e-9


def test_biharmonic_continues_a_slope_and_leaves_the_rest() -> None:
    image = np.mgrid[:32, :30][0][..., None] + np.zeros(4)
    hole = np.zeros(image.shape, np.uint8)
    hole[10:16, 10:16, 2] = 1
    query = volume(np.where(hole, image.min(), image).astype(np.float32))
    found = InpaintingSolver("biharmonic")(query, [], Task("inpainting"), plane=2, hole=query.with_array(hole))
    inside = hole > 0
    assert np.abs(found.volume.array - image)[inside].max() < 0.5
    mean = InpaintingSolver("mean_fill")(query, [], Task("inpainting"), plane=2, hole=query.with_array(hole))
    assert np.abs(mean.volume.array - image)[inside].max() > 3


def test_a_polynomial_learns_an_inverted_contrast() -> None:
    source, other = (np.random.default_rng(seed).uniform(0, 100, SHAPE).astype(np.float32) for seed in (0, 1))
    example = Reference(volume(other), volume(500 - 3 * other), "other")
    for name, tolerance in (("polynomial", 12), ("histogram", 20)):
        found = IntensityMapSolver(name, 3)(volume(source), [example], Task("synthesis"), plane=2, hole=None)
        assert np.abs(found.volume.array - (500 - 3 * source)).mean() < tolerance


def test_low_dose_noise_is_stronger_behind_bone_and_has_no_bias() -> None:
    rows, columns = np.mgrid[:64, :64] - 31.5
    water = np.where(rows**2 + columns**2 < 28**2, 0.0, -1000.0)
    dense = np.where(rows**2 + columns**2 < 20**2, 1500.0, water)
    noise = [low_dose_slice(one, 4.0, np.random.default_rng(0)) - one for one in (water, dense)]
    inside = rows**2 + columns**2 < 10**2
    assert abs(noise[0][inside].mean()) < 0.3 * noise[0][inside].std()
    assert noise[1][inside].std() > 1.5 * noise[0][inside].std() > 1
    assert np.array_equal(noise[0], low_dose_slice(water, 4.0, np.random.default_rng(0)) - water)


# --- learned rows ---


def test_the_cross_convolution_sees_query_and_example_together() -> None:
    block = CrossBlock(2, 3, 4).double()
    query, examples = torch.rand(1, 2, 8, 8).double(), torch.rand(1, 5, 3, 8, 8).double()
    both = torch.cat([block.of_query.weight, block.of_example.weight], dim=1)
    pairs = [torch.cat([query, examples[:, one]], dim=1) for one in range(5)]
    mixed = torch.stack([torch.nn.functional.leaky_relu(torch.nn.functional.conv2d(
        pair, both, block.of_query.bias, padding=1), 0.01) for pair in pairs], 1)
    expected = torch.nn.functional.leaky_relu(block.query(mixed.mean(1)), 0.01)
    assert torch.allclose(block(query, examples)[0], expected)


def test_universeg_has_the_size_of_the_paper_and_treats_its_support_as_a_set() -> None:
    assert sum(one.numel() for one in UniverSeg().parameters()) == pytest.approx(1.18e6, rel=0.01)
    torch.manual_seed(0)
    network = UniverSeg((8, 8, 8)).eval()
    query, images = torch.rand(2, 1, 16, 16), torch.rand(2, 3, 1, 16, 16)
    labels = (torch.rand(2, 3, 1, 16, 16) > 0.5).float()
    painted = network(query, images, labels)
    assert torch.allclose(painted, network(query, images.flip(1), labels.flip(1)), atol=1e-5)
    assert not torch.allclose(painted, network(query, images, 1 - labels), atol=1e-3)


def test_universeg_learns_one_label_of_an_episode_that_shows_others() -> None:
    images = torch.rand(1, 2, 1, 8, 8)
    classes = torch.zeros((1, 2, 8, 8), dtype=torch.int64)
    classes[..., :4], classes[..., 4:6] = 1, 2
    in_palette = torch.tensor([[True, False, True]])  # only class 2 is in use
    episodes = Episodes(images, images.expand(-1, -1, 3, -1, -1), images, classes, torch.rand(1, 3, 3), in_palette,
                        torch.zeros(1, dtype=torch.int64))
    seen = {}

    def network(query: torch.Tensor, shown: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen["labels"] = labels
        return torch.where(classes[:, 0, None] == 2, 20.0, -20.0)

    for seed in range(8):
        loss = universeg_loss(network, episodes, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        assert torch.equal(seen["labels"][0, 0, 0], (classes[0, 1] == 2).float())
        assert float(loss) < 1e-6


def test_universeg_is_asked_for_every_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.protocol import learned

    def network(query: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels.mean(1) * 4 - 1  # the support's own label

    monkeypatch.setattr(learned, "load", lambda _: network)
    backend = UniverSegBackend()
    label = np.zeros((16, 16, 3), np.float32)
    label[2:6, 2:6], label[9:12, 9:12] = (1, 0, 0), (0, 1, 0)
    painted = backend.paint(np.zeros((2, 16, 16), np.float32), backend.merge([backend.encode(label[..., 0], label)]))
    assert np.array_equal(painted, np.stack([label, label]))


def test_specialists_move_image_and_label_alike_and_learn() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 8:20, 10:22] = 1
    shown, labels = drawn(image, image.to(torch.uint8), 4, torch.Generator().manual_seed(0))
    assert not torch.equal(shown[0], shown[1])
    assert float(((shown > 0.5).float() - labels).abs().mean()) < 0.02


def test_no_specialist_learns_from_an_unseen_data_set() -> None:
    assert not {lesson.data for lesson in LESSONS.values()} & set(UNSEEN)
    assert all(unet_of(question) is None or question.data not in UNSEEN or question.kind != "segmentation"
               for question in all_questions().values())
    with pytest.raises(ValueError, match="heart_acdc"):
        recipe("unet:heart_acdc")

"""A limit on memory: what fits is chosen, what does not is refused, and a real run stays below it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_network
from typer.testing import CliRunner

from mvg_core import memory
from mvg_core.backends import TorchBackend
from mvg_core.cli import app
from mvg_core.memory import Room, Work, room
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
WORK = Work("torch", "fp32", side=1000, prompts=2, voxels=20_000_000)
"""Of a million pixels a slice, so that bytes a pixel are MB: slices 1500, prompts 32; the answer 100, writing 180."""


def test_everything_fits_into_enough_memory() -> None:
    needed = 300 + 100 + 60 + 2 * 32 + 4 * 1500 + 10 * 32
    assert room(1e6, WORK, block=4, cached_prompts=10, taken_mb=300) == Room(4, 10, needed)


def test_with_less_fewer_slices_are_painted_at_once_and_fewer_prompts_kept() -> None:
    # 300 taken, 100 for the answer, 124 fixed, 1500 for the first slice: 1676 are free, half of them for 26 prompts.
    found = room(3700, WORK, block=4, cached_prompts=100, taken_mb=300)
    assert found == Room(1, 26, 300 + 100 + 124 + 1500 + 26 * 32)
    assert found.needed_mb <= 3700
    assert room(3700, WORK, block=4, cached_prompts=5, taken_mb=300).block == 2


def test_the_least_is_one_slice_with_its_prompts() -> None:
    least = 300 + 100 + 124 + 1500 + 2 * 32
    assert room(least, WORK, block=4, cached_prompts=9, taken_mb=300) == Room(1, 2, least)
    with pytest.raises(ValueError, match=rf"at most {least - 1} MB of memory are allowed \(--max-memory\), about "
                       rf"{least} MB are needed: 300 are taken already .* 100 are for the answer, 1688 to paint"):
        room(least - 1, WORK, block=4, cached_prompts=9, taken_mb=300)


def test_writing_a_large_answer_may_take_more_than_painting_it() -> None:
    work = Work("torch", "fp32", side=100, prompts=1, voxels=100_000_000)
    assert room(1500, work, block=1, cached_prompts=1, taken_mb=50).needed_mb == 50 + 500 + 900
    with pytest.raises(ValueError, match="about 1450 MB are needed"):
        room(1449, work, block=1, cached_prompts=1, taken_mb=50)


def test_bfloat16_takes_less_and_onnx_runtime_a_table_for_every_prompt() -> None:
    assert Work("torch", "bf16", 1000, 2).slice_mb < WORK.slice_mb
    tables = [Work("onnxruntime", "fp32", 512, prompts).fixed_mb for prompts in (1, 2)]
    # 64 x 64 tokens of the slice for as many of each prompt, 4 bytes each, twice; and the prompt itself.
    assert tables[1] - tables[0] == pytest.approx(4096**2 * 8 / 1e6 + 512**2 * 32 / 1e6)
    assert Work("torch", "fp32", 512, 2).fixed_mb - Work("torch", "fp32", 512, 1).fixed_mb < 10


def test_what_is_taken_now_is_asked_of_the_system() -> None:
    # In a process of its own: in this one, other tests' garbage may be freed meanwhile.
    script = ("import numpy; from mvg_core.memory import resident_mb; before = resident_mb(); "
              "ballast = numpy.ones(100_000_000, numpy.uint8); print(before, resident_mb() - before)")
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, more = map(float, printed.split())
    assert before > 20
    assert more == pytest.approx(100, abs=5)


def example(side: int = 40) -> tuple[Volume, Reference]:
    image = Volume.from_array(np.random.default_rng(0).random((side, side, 3), np.float32))
    label = np.zeros(image.array.shape, np.uint8)
    label[10:20, 10:20, 1] = 1
    return image, Reference(image, image.with_array(label))


def test_a_predictor_stays_below_its_limit_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend(tiny_network(), "cpu")
    image, reference = example()
    free = Predictor(backend, block=8).predict_volume(image, reference)
    monkeypatch.setattr(memory, "resident_mb", lambda: 100.0)
    tight = Predictor(backend, block=8, max_memory_mb=164.5)
    limited = tight.within_memory(32, image.array.size)
    assert (limited.block, tight.block) == (2, 8)
    np.testing.assert_array_equal(tight.predict_volume(image, reference).volume.array, free.volume.array)
    with pytest.raises(ValueError, match="at most 150 MB of memory are allowed"):
        Predictor(backend, max_memory_mb=150).predict_volume(image, reference)
    with pytest.raises(ValueError, match="the memory that tuning takes cannot be limited"):
        Predictor(backend, max_memory_mb=5000, tuning=1).within_memory(32, 100)
    with pytest.raises(ValueError, match="max_memory_mb must be at least 1"):
        Predictor(backend, max_memory_mb=0)


def test_the_command_line_refuses_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image, reference = example()
    write_volume(image, "image.nii.gz")
    write_volume(reference.label, "label.nii.gz")
    result = CliRunner().invoke(app, [
        "predict", "image.nii.gz", "--reference", "image.nii.gz", "label.nii.gz", "--task", "segmentation", "--output",
        "out.nii.gz", "--max-memory", "50", "--threads", "1"])
    assert result.exit_code == 2, result.output
    assert "at most 50 MB of memory are allowed (--max-memory)" in result.output
    assert not Path("out.nii.gz").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 580), ("bf16", 540)])
def test_the_shipped_network_really_stays_below_the_limit(precision: str, limit: int) -> None:
    code = f"""
import json
import numpy as np
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.report import peak_memory_mb
from mvg_core.volume import Volume
image = Volume.from_array(np.random.default_rng(0).random((256, 256, 16), np.float32))
label = np.zeros(image.array.shape, np.uint8)
label[50:90, 60:120, 7:9] = 1
predictor = Predictor.load(backend="torch", device="cpu", threads=1, precision={precision!r}, block=16,
                           max_memory_mb={limit})
chosen = predictor.within_memory(192, image.array.size)
predictor.predict_volume(image, Reference(image, image.with_array(label)))
print(json.dumps([chosen.block, peak_memory_mb()]))
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    block, peak_mb = json.loads(finished.stdout)
    assert 1 <= block < 16, "the limit does not limit: lower it"
    assert peak_mb <= limit

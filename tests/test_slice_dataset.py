"""Slices of people's own files: those of inference, cut once, and refused in one line that names file and list."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from miniature import phantom, tiny_painter, write_ct, write_label_maps, write_mr, write_pictures
from monai.data.meta_obj import set_track_meta

from mvg_core.codecs import ImageCodec, LabelCodec
from mvg_core.intensity import IntensityScaling
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.tasks import TASK_KINDS, Task
from mvg_core.training import slice_transforms
from mvg_core.training.bank import SliceBank, build_bank
from mvg_core.training.cutting import SOURCE, TARGET, UNDIRECTED
from mvg_core.training.datalist import (
    DatalistError,
    convert_dataset_json,
    read_datalist,
    read_datalists,
    write_datalist,
)
from mvg_core.training.datasets import RefusedDataError, read_training_set
from mvg_core.training.episodes import EpisodeConfig
from mvg_core.training.reading import LoadVolumesd, to_volume
from mvg_core.training.slice_cache import CacheWarning
from mvg_core.training.slice_dataset import DatalistWarning, SliceDataset
from mvg_core.training.trainer import HybridTrainer, TrainingConfig
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume

SIZE = 32
BYTE = 0.51 / 255  # rounding to whole grey levels


class Recorder:
    """A network that paints nothing and remembers what it was given."""

    name, checkpoint_sha256, size = "recorder", "", SIZE

    def __init__(self) -> None:
        self.card: dict[str, Any] = {}
        self.prompts: list[tuple[np.ndarray, np.ndarray]] = []
        self.queries: list[np.ndarray] = []

    def encode(self, image: np.ndarray, label: np.ndarray) -> Any:
        self.prompts.append((image, label))

    def merge(self, encoded: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        return None

    def paint(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        self.queries.append(queries)
        return np.zeros((*queries.shape, 3), np.float32)


def grey(labels: np.ndarray, seed: int = 0, values: Sequence[float] = (0, 100, 200, 50)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 3, labels.shape)
    return (np.array(values)[labels] + noise).astype(np.float32)


def turned(angle_deg: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """An affine with its first two axes turned about a tilted third, and an origin off the middle."""
    a, b = np.radians(angle_deg), np.radians(angle_deg / 2)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-spacing_mm[0], spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = (11.0, -7.0, 40.0)
    return affine


def write_dicom(volume: Volume, folder: Path) -> None:
    """A CT series in Hounsfield units, written from its last slice to its first."""
    folder.mkdir()
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.astype(np.int16).transpose(2, 1, 0)))
    image.SetSpacing(volume.geometry.spacing_mm)
    lps = np.diag([-1.0, -1.0, 1.0])
    image.SetDirection((lps @ volume.geometry.direction).ravel().tolist())
    image.SetOrigin((lps @ volume.geometry.affine[:3, 3]).tolist())
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for k in reversed(range(image.GetDepth())):
        one = image[:, :, k]
        tags = {"0008|0060": "CT", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0008|0018": f"1.2.3.4.{k + 1}",
                "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, k)))),
                "0020|0037": "\\".join(map(str, direction[0::3] + direction[1::3])), "0020|0013": str(k),
                "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0028|1052": "0", "0028|1053": "1"}
        for tag, value in tags.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{image.GetDepth() - k:03}.dcm"))
        writer.Execute(one)


def oblique_nifti(folder: Path) -> dict[str, Path]:
    labels, geometry = phantom(1), Geometry((26, 24, 22), turned(25, (1.0, 1.1, 1.2)))
    write_volume(Volume(grey(labels), geometry), folder / "a.nii.gz")
    write_volume(Volume(labels, geometry), folder / "b.nii.gz")
    return {"image": folder / "a.nii.gz", "label": folder / "b.nii.gz"}


def nrrd_of_counts(folder: Path) -> dict[str, Path]:
    labels, geometry = phantom(2, (30, 28, 9)), Geometry((30, 28, 9), turned(-10, (0.8, 0.7, 3.0)))
    counts = np.maximum(grey(labels) * 200, 0).astype(np.uint16)
    write_volume(Volume(counts, geometry), folder / "a.nrrd")
    write_volume(Volume(labels, geometry), folder / "b.mha")
    return {"image": folder / "a.nrrd", "label": folder / "b.mha"}


def dicom_with_label_of_another_order(folder: Path) -> dict[str, Path]:
    labels = phantom(0, (28, 26, 9))
    volume = Volume(grey(labels, values=(-1000, 40, 80, 700)).round(), Geometry((28, 26, 9), np.diag([-1.5, -1, 4, 1])))
    write_dicom(volume, folder / "series")
    # As converters write it: the same place, rows the other way round.
    flipped = np.diag([-1.5, 1.0, 4.0, 1.0])
    flipped[1, 3] = -25.0
    write_volume(Volume(labels[:, ::-1], Geometry((28, 26, 9), flipped)), folder / "b.nii.gz")
    return {"image": folder / "series", "label": folder / "b.nii.gz"}


def picture(folder: Path) -> dict[str, Path]:
    label = (phantom(0, (30, 24, 12))[:, :, 6:7] == 2).astype(np.uint8)
    image = np.zeros((24, 30, 3), np.uint8)  # rows, columns, colours
    image[..., 0], image[..., 1], image[..., 2] = 60 + 120 * label[:, :, 0].T, 80, np.arange(30) * 5
    sitk.WriteImage(sitk.GetImageFromArray(image, isVector=True), str(folder / "a.png"))
    write_volume(Volume.from_array(label), folder / "b.png")
    return {"image": folder / "a.png", "label": folder / "b.png"}


FORMATS = [oblique_nifti, nrrd_of_counts, dicom_with_label_of_another_order, picture]


def rows_of(bank: SliceBank, stack: int) -> np.ndarray:
    rows = np.flatnonzero(bank.stack == stack)
    return rows[np.argsort(bank.number[rows])]


def same_banks(one: SliceBank, other: SliceBank) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name))
               for field in dataclasses.fields(SliceBank))


# --- the same as in inference ---


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.filterwarnings("ignore:.*luminance")
def test_slices_are_those_that_the_network_is_shown_in_inference(tmp_path, write):
    paths = write(tmp_path)
    dataset = SliceDataset([paths], size=SIZE, stride_2nd=1)
    bank, stacks = dataset.bank, dataset[0]["stacks"]
    image, label = read_volume(paths["image"]), read_volume(paths["label"])
    almost = image.with_array(image.array.copy())  # or the solved slices of the reference would not be painted
    almost.array[0, 0, 0] += 1
    codec = LabelCodec.for_labels(sorted(set(np.unique(label.array).tolist()) - {0}))
    assert [stack["plane"] for stack in stacks if not stack["contrast"].endswith("_wide")] == (
        ["axial", "coronal", "sagittal"] if write is oblique_nifti else ["axial"])
    for number, stack in enumerate(stacks):
        if stack["contrast"].endswith("_wide"):  # of CT, the window of image-to-image tasks
            continue
        rows, network, other = np.flatnonzero(bank.stack == number), Recorder(), Recorder()
        for backend, query, solved_one in ((network, image, almost), (other, almost, image)):
            Predictor(backend, n_prompts=1, cached_prompts=99).predict_volume(query, Reference(solved_one, label),
                                                                              plane=stack["plane"])
        shown = np.concatenate(network.queries)
        assert len(rows) > 0.5 * len(shown)
        for row in rows:
            assert np.abs(shown - bank.images[row] / 255).max((1, 2)).min() <= BYTE
        prompts, painted = (np.stack(parts) for parts in zip(*other.prompts, strict=True))
        assert bank.labelled[rows].sum() > 0.5 * len(prompts)
        for row in rows[bank.labelled[rows]]:
            number = np.abs(prompts - bank.images[row] / 255).max((1, 2)).argmin()
            assert np.abs(prompts[number] - bank.images[row] / 255).max() <= BYTE
            assert np.array_equal(codec.encode(bank.labels[row]), painted[number])


def pair_of(kind: str, folder: Path, *, ct: bool = False) -> dict[str, Any]:
    labels = phantom(0, (28, 26, 9))
    values = (-1000, 40, 80, 700) if ct else (0, 100, 200, 50)
    clean = grey(labels, 0, values)
    source = clean + np.random.default_rng(3).normal(0, 20, clean.shape).astype(np.float32)
    if kind == "synthesis":
        source = grey(labels, 1, (0, 900, 100, 500))
    if kind == "inpainting":
        source = clean.copy()
        source[8:16, 8:14, 2:7] = np.nan  # whatever is in the hole
    geometry = Geometry(labels.shape, np.diag([1.0, 1.0, 4.0, 1.0]))
    for name, array in (("source", source), ("target", clean)):
        write_volume(Volume(array, geometry), folder / f"{name}.nii.gz")
    return {"source": folder / "source.nii.gz", "target": folder / "target.nii.gz", "task": kind, "subject": "a"}


@pytest.mark.parametrize(("kind", "ct"), [("denoising", False), ("denoising", True), ("synthesis", False),
                                          ("inpainting", False)])
def test_pairs_are_shown_and_painted_as_in_inference(tmp_path, kind, ct):
    item = pair_of(kind, tmp_path, ct=ct)
    bank = SliceDataset([item], size=SIZE).bank
    source, target = (bank.direction == side for side in (SOURCE, TARGET))
    assert source.sum() == target.sum() == len(bank.images) / 2 == 9
    assert (bank.kind == TASK_KINDS.index(kind)).all()
    assert np.array_equal(bank.site[source], bank.site[target])
    assert len(np.unique(bank.group)) == 2
    network, (query, answer) = Recorder(), (read_volume(item[name]) for name in ("source", "target"))
    hole = query.with_array((query.array != answer.array).astype(np.uint8)) if kind == "inpainting" else None
    if hole is not None:
        scaling = IntensityScaling.for_volume(query.array[hole.array == 0])
        query = query.with_array(np.nan_to_num(query.array, nan=scaling.low))
    reference = Reference(query, answer, slices=tuple(range(9)), hole=hole)
    other = query.with_array(query.array.copy())
    Predictor(network, n_prompts=1, cached_prompts=99).predict_volume(other, reference, Task(kind), plane="axial",
                                                                      hole=hole)
    shown = np.concatenate(network.queries)
    assert len(shown) == (9 if hole is None else 5)
    images, targets = (bank.images[rows] / 255 for rows in (source, target))
    for query_slice in shown:
        assert np.abs(images - query_slice).max((1, 2)).min() <= BYTE
    for prompt, painted in network.prompts:
        number = np.abs(images - prompt).max((1, 2)).argmin()
        assert np.abs(images[number] - prompt).max() <= BYTE
        assert np.abs(ImageCodec().encode(targets[number].astype(np.float32)) - painted).max() <= BYTE


@pytest.mark.parametrize(("write", "reader"), [(oblique_nifti, "NibabelReader"), (nrrd_of_counts, "ITKReader"),
                                               (dicom_with_label_of_another_order, "ITKReader")])
def test_monai_reads_the_same_by_readers_of_its_own(tmp_path, write, reader):
    path = str(write(tmp_path)["image"])
    loaded = to_volume(LoadVolumesd(["x"], reader)({"x": path})["x"], path)
    known = read_volume(path)
    assert np.array_equal(loaded.array, known.array)
    assert loaded.geometry.is_close(known.geometry)


def test_monai_reads_pictures_as_width_by_height(tmp_path):
    path = str(picture(tmp_path)["label"])
    loaded = to_volume(LoadVolumesd(["x"], "PILReader")({"x": path})["x"], path)
    known = read_volume(path)
    assert loaded.array.shape == (30, 24, 1)
    assert np.array_equal(loaded.array, known.array)
    assert loaded.geometry.is_close(known.geometry)
    colours = str(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: has shape \(30, 24, 3\), needed one volume of one channel"):
        to_volume(LoadVolumesd(["x"], "PILReader")({"x": colours})["x"], colours)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.uint32, np.float32, np.float64])
def test_the_number_type_of_the_file_survives_torch(tmp_path, kind):
    write_volume(Volume.from_array(np.arange(60).reshape(3, 4, 5).astype(kind)), tmp_path / "a.nrrd")
    path = str(tmp_path / "a.nrrd")
    assert to_volume(LoadVolumesd(["x"])({"x": path})["x"], path).array.dtype == kind


def test_without_meta_data_nothing_is_read(tmp_path):
    paths = oblique_nifti(tmp_path)
    set_track_meta(False)
    try:
        with pytest.raises(DatalistError, match=r"a\.nii\.gz: MONAI kept no affine of it: switch it on again"):
            _ = SliceDataset([paths], size=SIZE).bank
    finally:
        set_track_meta(True)


def test_no_other_reader_makes_something_of_a_damaged_file(tmp_path):
    path = picture(tmp_path)["label"]
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    sitk.WriteImage(image, str(tmp_path / "c.jpg"))
    (tmp_path / "c.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:-300])
    with pytest.raises(DatalistError, match=r"c\.jpg: the JPEG ends before its end marker, so it is truncated"):
        _ = SliceDataset([{"image": tmp_path / "c.jpg", "label": path}], size=SIZE).bank


# --- what is in the bank ---


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> list[Path]:
    """Datalists of the data sets of `miniature`, in this order: mr, ct, maps, pictures."""
    folder = tmp_path_factory.mktemp("lists")
    for name, write in {"mr": write_mr, "ct": write_ct, "maps": write_label_maps, "pictures": write_pictures}.items():
        write(folder / name)
        write_datalist(folder / f"{name}.json", convert_dataset_json(folder / name))
    return [folder / f"{name}.json" for name in ("mr", "ct", "maps", "pictures")]


@pytest.fixture(scope="module")
def dataset(lists) -> SliceDataset:
    return SliceDataset(read_datalists(lists, "training"), size=SIZE)


def test_datalists_give_the_bank_that_their_folders_gave(lists, dataset):
    assert same_banks(dataset.bank, build_bank([read_training_set(path.with_suffix("")) for path in lists], size=SIZE))


def test_items_show_their_slices(lists, dataset):
    fresh = SliceDataset(dataset.data, size=SIZE)
    assert len(fresh) == len(dataset.data) == 10
    for each in (fresh, dataset):  # before and after the bank was built
        item = each[1]
        assert (item["dataset"], item["subject"], item["task"]) == ("mr", "s1", "segmentation")
        assert [(stack["plane"], stack["contrast"]) for stack in item["stacks"]] == [
            (plane, contrast) for plane in ("axial", "coronal", "sagittal") for contrast in ("t1", "t2")]
        assert all(stack["direction"] == UNDIRECTED for stack in item["stacks"])
    bank, first = dataset.bank, dataset[1]["stacks"][0]
    rows = rows_of(bank, int(np.unique(bank.stack[bank.subject == 1])[0]))
    assert np.array_equal(first["images"], bank.images[rows])
    assert np.array_equal(first["labels"], bank.labels[rows])
    assert first["numbers"].tolist() == bank.number[rows].tolist()
    assert len(fresh[-1]["stacks"]) == 1
    with pytest.raises(IndexError):
        dataset[10]


def test_without_a_cache_memory_holds_the_slices_once(dataset):
    assert np.shares_memory(dataset[0]["stacks"][0]["images"].numpy(), dataset.bank.images)
    assert np.shares_memory(dataset[0]["stacks"][0]["labels"].numpy(), dataset.bank.labels)


def test_weights_of_the_lists_reach_the_bank(lists):
    mixed = SliceDataset(read_datalists([{"path": lists[0], "weight": 2.5}, lists[3]], "training"), size=SIZE)
    assert mixed.dataset_weights == {"mr": 2.5, "pictures": 1.0}
    assert dict(zip(mixed.bank.names.tolist(), mixed.bank.weights, strict=True)) == mixed.dataset_weights


def blocks(subject: int = 0) -> np.ndarray:
    """Six thick slices of `phantom`, each with all its labels but the ball."""
    return phantom(subject, (24, 24, 12))[:, :, 3:9]


def solved(folder: Path, name: str, label_map: np.ndarray, **more: Any) -> dict[str, Any]:
    """An item of its own files."""
    write_volume(Volume.from_array(grey(np.minimum(label_map, 3)), (1, 1, 4)), folder / f"{name}.nii.gz")
    write_volume(Volume.from_array(label_map, (1, 1, 4)), folder / f"{name}_label.nii.gz")
    return {"image": folder / f"{name}.nii.gz", "label": folder / f"{name}_label.nii.gz", "subject": name, **more}


def test_labels_of_one_data_set_belong_together_by_name(tmp_path):
    labels = blocks()
    swapped = np.array([0, 7, 1, 9], np.uint8)[labels]
    found = SliceDataset([
        solved(tmp_path, "a", labels, labels={1: "Block", 2: "ball", 3: "rod"}),
        solved(tmp_path, "b", swapped, labels={7: "block", 1: "BALL", 9: "pin"}),
        solved(tmp_path, "c", swapped, labels={7: "block", 1: "ball", 9: "pin"}, dataset="other")], size=SIZE)
    assert found.labels == {"data": {1: "Block", 2: "ball", 3: "rod", 9: "pin"}, "other": {1: "ball", 7: "block",
                                                                                          9: "pin"}}
    bank, subjects = found.bank, [rows_of(found.bank, stack) for stack in np.unique(found.bank.stack)]
    first, second, third = (bank.labels[rows] for rows in subjects)
    assert np.array_equal(np.where(first == 3, 9, first), second)
    assert np.array_equal(np.array([0, 7, 1, 9])[first], third)


def test_a_number_that_is_taken_goes_to_the_next_free_one(tmp_path):
    labels = blocks()
    found = SliceDataset([solved(tmp_path, "a", labels, labels={1: "block", 2: "ball", 3: "rod"}),
                          solved(tmp_path, "b", np.minimum(labels, 2), labels={1: "block", 2: "cube"})], size=SIZE)
    assert found.labels["data"] == {1: "block", 2: "ball", 3: "rod", 4: "cube"}
    assert set(np.unique(found.bank.labels[found.bank.subject == 1])) == {0, 1, 4}


def test_merged_labels_are_gone(tmp_path):
    item = solved(tmp_path, "a", blocks(), labels={1: "block"}, merge={2: 1, 3: 0})
    assert set(np.unique(SliceDataset([item], size=SIZE).bank.labels)) == {0, 1}


def test_modalities_of_a_data_set_do_not_serve_each_other(tmp_path):
    labels = blocks()
    items = [solved(tmp_path, name, labels, modality=modality) for name, modality in (("a", "CT"), ("b", "MR"),
                                                                                      ("c", "MR"))]
    bank = SliceDataset(items, size=SIZE).bank
    groups = {int(subject): set(bank.group[bank.subject == subject]) for subject in np.unique(bank.subject)}
    assert groups[1] == groups[2]
    assert not groups[0] & groups[1]


def test_items_that_share_a_label_map_are_stacks_of_their_own(tmp_path):
    item = solved(tmp_path, "a", blocks())
    write_volume(Volume.from_array(grey(blocks(), 1), (1, 1, 4)), tmp_path / "late.nii.gz")
    bank = SliceDataset([item, item | {"image": tmp_path / "late.nii.gz"}], size=SIZE).bank
    assert len(np.unique(bank.stack)) == len(np.unique(bank.site)) / 6 == 2
    assert len(np.unique(bank.subject)) == len(np.unique(bank.group)) == 1


def test_a_label_on_another_grid_of_the_same_place_is_resampled(tmp_path):
    labels = blocks()
    same = solved(tmp_path, "a", labels)
    fine = np.repeat(np.repeat(labels, 2, 0), 2, 1)
    affine = np.diag([0.5, 0.5, 4, 1.0])
    affine[:2, 3] = -0.25
    write_volume(Volume(fine, Geometry(fine.shape, affine)), tmp_path / "fine.nii.gz")
    banks = [SliceDataset([same | changes], size=SIZE).bank for changes in ({}, {"label": tmp_path / "fine.nii.gz"})]
    assert np.array_equal(banks[0].labels, banks[1].labels)


def test_items_that_show_nothing_are_told_of(tmp_path):
    speck = np.zeros((24, 24, 6), np.float32)
    speck[3, 3, 3] = 1
    write_volume(Volume.from_array(speck, (1, 1, 4)), tmp_path / "speck.nii.gz")
    item = solved(tmp_path, "a", blocks())
    empty = {"image": tmp_path / "speck.nii.gz", "label": item["label"], "subject": "empty"}
    with pytest.warns(DatalistWarning, match="item of subject 'empty': no slice shows anything, so it adds nothing"):
        assert np.unique(SliceDataset([item, empty], size=SIZE).bank.subject).tolist() == [0]
    with pytest.warns(DatalistWarning), pytest.raises(DatalistError, match="data: no slice shows anything: check"):
        _ = SliceDataset([empty], size=SIZE).bank


# --- cache ---


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The paths that are read from now on."""
    paths: list[str] = []

    def counted(image: Any, path: str = "") -> Volume:
        paths.append(Path(path).name)
        return to_volume(image, path)

    monkeypatch.setattr(slice_transforms, "to_volume", counted)
    return paths


@pytest.fixture
def cached(tmp_path) -> Callable[..., SliceDataset]:
    """Makes data sets of the same two items with the same cache."""
    items = [solved(tmp_path, name, blocks(k), labels={1: "block", 2: "ball", 3: "rod"})
             for k, name in enumerate("ab")]

    def make(**more: Any) -> SliceDataset:
        return SliceDataset(items, cache=tmp_path / "cache", **{"size": SIZE, **more})

    return make


def test_a_second_construction_reads_nothing(cached, reads, lists):
    first = cached().bank
    assert reads == ["a.nii.gz", "a_label.nii.gz", "b.nii.gz", "b_label.nii.gz"]
    second = cached()
    assert same_banks(second.bank, first)
    assert len(second[1]["stacks"]) == 1
    assert len(reads) == 4


def test_a_cached_bank_is_that_of_memory_and_mapped_from_disk(cached, tmp_path):
    on_disk, in_memory = cached().bank, SliceDataset(cached().data, size=SIZE).bank
    assert same_banks(on_disk, in_memory)
    assert isinstance(on_disk.images, np.memmap)
    assert isinstance(on_disk.labels, np.memmap)
    assert not isinstance(in_memory.images, np.memmap)


def test_other_slices_are_cut_for_another_size_or_stride(cached, reads):
    shapes = [cached(**more).bank.images.shape[1:] for more in ({}, {"size": 16}, {"stride_2nd": 3})]
    assert shapes == [(32, 32), (16, 16), (32, 32)]
    assert len(reads) == 12


def test_a_changed_file_is_read_again(cached, reads, tmp_path):
    before = cached().bank
    reads.clear()
    write_volume(Volume.from_array(blocks(2), (1, 1, 4)), tmp_path / "b_label.nii.gz", overwrite=True)
    after = cached().bank
    assert reads == ["b.nii.gz", "b_label.nii.gz"]
    assert not np.array_equal(before.labels, after.labels)
    status = (tmp_path / "a.nii.gz").stat()
    os.utime(tmp_path / "a.nii.gz", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    reads.clear()
    assert same_banks(cached().bank, after)
    assert reads == ["a.nii.gz", "a_label.nii.gz"]


def test_a_changed_slice_of_a_dicom_folder_is_read_again(tmp_path, reads):
    paths = dicom_with_label_of_another_order(tmp_path)
    for _ in range(2):
        _ = SliceDataset([paths], cache=tmp_path / "cache", size=SIZE).bank
    assert len(reads) == 2
    os.utime(tmp_path / "series" / "003.dcm", (1, 1))
    _ = SliceDataset([paths], cache=tmp_path / "cache", size=SIZE).bank
    assert len(reads) == 4


@pytest.mark.parametrize("changes", [
    {"merge": {3: 2}}, {"labels": {2: "block", 1: "ball", 3: "rod"}}, {"subject": "a"}, {"dataset": "other"},
    {"modality": "CT"}, {"weight": 3.0}])
def test_what_an_item_says_otherwise_is_not_taken_from_the_cache(cached, tmp_path, changes):
    first, second = cached().data
    _ = cached().bank
    changed = [first, second | changes]
    assert same_banks(SliceDataset(changed, cache=tmp_path / "cache", size=SIZE).bank,
                      SliceDataset(changed, size=SIZE).bank)
    assert not same_banks(SliceDataset(changed, size=SIZE).bank, cached().bank)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "lengthened":
        path.write_bytes(content + bytes(1024))
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content[largest.header_offset + 200] ^= 0xFF
        path.write_bytes(content)
    elif how == "code":
        torch.save({"stacks": [Path("x")]}, path)


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "code"])
def test_a_damaged_entry_is_made_again(cached, reads, tmp_path, how):
    whole = cached().bank
    shutil.rmtree(next((tmp_path / "cache").glob("bank-*")))
    damage(sorted((tmp_path / "cache").glob("*.pt"))[0], how)
    reads.clear()
    with pytest.warns(CacheWarning, match=r"\.pt is damaged: its item is cut again"):
        assert same_banks(cached().bank, whole)
    assert len(reads) == 2
    reads.clear()
    shutil.rmtree(next((tmp_path / "cache").glob("bank-*")))
    assert same_banks(cached().bank, whole)
    assert reads == []


@pytest.mark.parametrize(("part", "how"), [
    ("images.bin", "truncated"), ("images.bin", "removed"), ("images.bin", "lengthened"), ("labels.bin", "truncated"),
    ("labels.bin", "lengthened"), ("columns.npz", "truncated"), ("columns.npz", "removed")])
def test_a_damaged_bank_is_built_again_from_its_entries(cached, reads, tmp_path, part, how):
    whole = SliceDataset(cached().data, size=SIZE).bank
    assert same_banks(cached().bank, whole)
    path = next((tmp_path / "cache").glob("bank-*")) / part
    path.unlink() if how == "removed" else damage(path, how)
    reads.clear()
    with pytest.warns(CacheWarning, match=r"bank-\w+ is damaged .*: built again"):
        assert same_banks(cached().bank, whole)
    assert reads == []


def test_an_interrupted_build_leaves_no_bank(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(SliceBank, "map", classmethod(lambda cls, folder: (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        _ = cached().bank
    assert not [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".pt"]


def test_a_cache_that_cannot_be_made_is_named(cached, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cache .*file.cache cannot be made .*: choose another folder"):
        SliceDataset(cached().data, cache=tmp_path / "file" / "cache")


@contextlib.contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file may grow longer, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["entry", "bank"])
def test_a_full_disk_is_told_of_and_leaves_nothing_half_written(cached, tmp_path, what):
    dataset = cached()
    if what == "bank":
        _ = dataset[0], dataset[1]
    with room_for(4000), pytest.raises((DatalistError, OSError), match=r"cache .*cannot be written to .*: free space"):
        _ = dataset.bank
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".pt"}
    assert same_banks(cached().bank, SliceDataset(dataset.data, size=SIZE).bank)


def test_a_trainer_draws_from_a_mapped_bank_as_from_one_in_memory(cached, tmp_path):
    (tmp_path / "pair").mkdir()
    items = [*cached().data, pair_of("denoising", tmp_path / "pair") | {"dataset": "pairs"}]
    config = TrainingConfig(episodes=EpisodeConfig(size=SIZE, kinds={"denoising": 1.0}), batch=4, iterations=2,
                            epoch_length=2, warm_up=1, precision="fp32")
    losses = []
    for cache in (None, tmp_path / "cache"):
        trainer = HybridTrainer(tiny_painter(), SliceDataset(items, size=SIZE, cache=cache), config,
                                tmp_path / f"run{len(losses)}")
        trainer.run()
        losses.append(trainer.state.output[0]["loss"])
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0])


def test_several_workers_cut_the_same(cached, tmp_path):
    assert same_banks(SliceDataset(cached().data, size=SIZE, workers=3).bank, cached(workers=2).bank)


# --- refused ---


def test_items_are_refused_before_anything_is_read(tmp_path):
    item = solved(tmp_path, "a", blocks())
    refused: list[tuple[list[Any], type[Exception], str]] = [
        ([], DatalistError, "no items to cut slices of"),
        ([{"label": item["label"]}], DatalistError, "data: item 0: has a 'label' but no 'image'"),
        ([item, {"image": item["image"]}], DatalistError, "data: item 1: has an 'image' but no 'label'"),
        ([item | {"label": tmp_path / "x.nii"}], FileNotFoundError, r"data: item 0 \(a\): .*x\.nii is missing"),
        ([item | {"role": "unseen"}], RefusedDataError, r"item 0 \(a\): has role 'unseen', only role 'train'"),
        ([item | {"task": "segment"}], DatalistError, "task 'segment' is unknown"),
        ([item | {"labels": {"a": "b"}}], DatalistError, "label 'a': 'b' has no number")]
    for data, kind, message in refused:
        with pytest.raises(kind, match=message):
            SliceDataset(data)
    with pytest.raises(DatalistError, match=r"list\.json: needed the items of a datalist, got a path"):
        SliceDataset("list.json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        SliceDataset([item], size=0)


def spoilt(folder: Path, how: str) -> dict[str, Any]:
    """An item that cannot be used."""
    labels = blocks()
    item = solved(folder, "a", labels, labels={1: "block", 2: "ball", 3: "rod"})
    image = read_volume(item["image"])
    if how == "unreadable":
        item["image"].write_bytes(b"\x1f\x8b nonsense")
    elif how == "unnamed label":
        item["labels"] = {1: "block", 2: "ball"}
    elif how == "probabilities":
        write_volume(image.with_array(labels / 4), item["label"], overwrite=True)
    elif how in ("nan", "constant"):
        array = np.full_like(image.array, 3.0)
        array[2, 2, 2] = np.nan if how == "nan" else 3.0
        write_volume(image.with_array(array), item["image"], overwrite=True)
    elif how == "elsewhere":
        write_volume(Volume(labels, Geometry(labels.shape, np.diag([1, 1, 9.0, 1]))), item["label"], overwrite=True)
    elif how == "contrasts":
        write_volume(Volume.from_array(grey(labels)[1:]), folder / "t2.nii.gz")
        item["image"] = {"t1": item["image"], "t2": folder / "t2.nii.gz"}
    elif how == "frames":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 6, 24, 24), np.float32), isVector=False),
                        str(folder / "four.nii.gz"))
        item["image"] = folder / "four.nii.gz"
    return item


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unreadable", r"a\.nii\.gz: not an image that can be read, or damaged"),
        ("unnamed label", r"a_label\.nii\.gz holds label 3, which its 'labels' do not name .*\"merge\": \{\"3\": 0\}"),
        ("probabilities", r"a_label\.nii\.gz holds fractions such as"),
        ("nan", r"'.*a\.nii\.gz' holds 1 NaN/Inf voxels"),
        ("constant", r"a\.nii\.gz is constant \(3\.0 everywhere\)"),
        ("elsewhere", r"a_label\.nii\.gz does not cover the same place as .*a\.nii\.gz \(spacing 1 x 1 x 9 instead"),
        ("contrasts", r"t2\.nii\.gz and .*a\.nii\.gz have different grids \(shape \(23, 24, 6\) instead of \(24, "),
        ("frames", r"four\.nii\.gz: holds 2 frames, needed one volume"),
    ],
)
@pytest.mark.parametrize("cache", [False, True])
def test_an_unusable_file_is_named_with_its_item_and_list(tmp_path, how, message, cache):
    item = spoilt(tmp_path, how)
    paths = {key: str(value) if isinstance(value, Path) else {k: str(v) for k, v in value.items()}
             for key, value in item.items() if key in ("image", "label")}
    write_datalist(tmp_path / "list.json", {"labels": {str(k): v for k, v in item["labels"].items()},
                                            "training": [{**paths, "subject": "a"}]})
    dataset = SliceDataset(read_datalist(tmp_path / "list.json", "training"), size=SIZE,
                           cache=tmp_path / "cache" if cache else None)
    with pytest.raises(DatalistError, match=rf"list\.json: item of subject 'a': .*{message}") as caught:
        _ = dataset.bank
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/*bank*"))


def test_an_inpainting_that_is_equal_nowhere_is_refused(tmp_path):
    item = pair_of("denoising", tmp_path) | {"task": "inpainting"}
    with pytest.raises(DatalistError, match=r"source\.nii\.gz and .*target\.nii\.gz are equal nowhere: outside"):
        _ = SliceDataset([item], size=SIZE).bank


def test_more_labels_than_numbers_are_refused(tmp_path):
    items = [solved(tmp_path, name, blocks(), labels={k: f"{name}{k}" for k in range(1, 200)})
             for name in "ab"]
    with pytest.raises(DatalistError, match="data set 'data' has more than 255 labels: give its lists different names"):
        SliceDataset(items)


@pytest.mark.shared
def test_converted_shared_sets_give_the_banks_that_they_gave(shared_folder, tmp_path):
    for name in ("brain_ms", "sarcoma_ct_pet_mr", "carotid_us"):
        listing = convert_dataset_json(shared_folder / "data" / name)
        listing["training"] = listing["training"][:1]
        write_datalist(tmp_path / f"{name}.json", listing)
        assert json.loads((tmp_path / f"{name}.json").read_text())["name"] == name
        known = read_training_set(shared_folder / "data" / name)
        bank = SliceDataset(read_datalist(tmp_path / f"{name}.json", "training"), size=SIZE, stride_2nd=8).bank
        assert same_banks(bank, build_bank([dataclasses.replace(known, items=known.items[:1])], SIZE, 8))

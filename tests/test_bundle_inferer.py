"""The bundle's inferer answers what MONAI hands it as the library answers the file, on the same grid."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CONFIGS, LABELS, oblique_affine, subject, write_data
from miniature import tiny_painter
from monai.bundle.config_parser import ConfigParser
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged, SaveImaged
from monai.transforms.utility.dictionary import EnsureChannelFirstd
from tiny import add_reader, write_weights
from torch import nn

from mvg_core.backends import TorchBackend
from mvg_core.bundle.images import images_to_predict
from mvg_core.bundle.inferer import InContextInferer
from mvg_core.bundle.prompts_folder import PromptsError, add_case
from mvg_core.bundle.references import ReferenceSource
from mvg_core.bundle.tensors import to_volumes
from mvg_core.engine import VolumeEngine
from mvg_core.network.errors import CheckpointError
from mvg_core.predict import PredictionWarning, Predictor
from mvg_core.reader_backends import TorchReader, load_reader
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.training.reading import LoadVolumesd
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume
from mvg_core.weights import WeightsError


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return tiny_painter()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data")).parent


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    add_case(folder, *subject(5), name="phantom", labels=LABELS)
    return folder


@pytest.fixture(scope="module")
def inferer(prompts: Path) -> InContextInferer:
    return InContextInferer(ReferenceSource(prompts))


def answered(query: Volume, network: nn.Module, preset: str = "balanced", reader: TorchReader | None = None
             ) -> np.ndarray:
    """By the library, without MONAI."""
    engine = VolumeEngine(Predictor(TorchBackend(network, "cpu", reader=reader)), preset)
    return engine.solve(query, Reference(*subject(5)), Task.segmentation(LABELS)).volume.array


def loaded(path: Path, transform: Any = None) -> MetaTensor:
    """A batch of one, as MONAI's loader gives it."""
    transform = transform or LoadVolumesd("image")
    dataset = Dataset([{"image": str(path)}], Compose([transform, EnsureChannelFirstd("image")]))
    return next(iter(DataLoader(dataset)))["image"]


# --- grids ---


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("reader", [None, LoadImaged("image"), LoadImaged("image", reader="ITKReader"),
                                    LoadImaged("image", reader="ITKReader", affine_lps_to_ras=False)],
                         ids=["ours", "MONAI's", "ITK", "ITK in LPS"])
def test_an_oblique_volume_keeps_its_grid_and_its_answer(tmp_path: Path, network: nn.Module, inferer: InContextInferer,
                                                         suffix: str, reader: Any) -> None:
    image, _ = subject(3)
    write_volume(image, tmp_path / f"a{suffix}")
    batch = loaded(tmp_path / f"a{suffix}", reader)
    assert to_volumes(batch)[0].geometry.is_close(Geometry(image.geometry.shape, oblique_affine()))
    answer = inferer(batch, network)
    assert isinstance(answer, MetaTensor)
    assert (answer.shape, answer.dtype) == (batch.shape, torch.uint8)
    np.testing.assert_array_equal(answer.numpy()[0, 0], answered(image, network))
    assert answer.any()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_what_monai_writes_lies_on_the_grid_of_the_input(tmp_path: Path, network: nn.Module, inferer: InContextInferer,
                                                         suffix: str) -> None:
    image, _ = subject(3)
    write_volume(image, tmp_path / f"a{suffix}")
    batch = loaded(tmp_path / f"a{suffix}")
    items: Any = decollate_batch({"image": batch, "pred": inferer(batch, network)})
    SaveImaged("pred", output_dir=tmp_path, output_postfix="mvg", output_dtype=None, separate_folder=False)(items[0])
    written = read_volume(tmp_path / "a_mvg.nii.gz")
    assert written.geometry.is_close(image.geometry)
    np.testing.assert_array_equal(written.array, answered(image, network))


def test_sheared_grids_are_kept(tmp_path: Path) -> None:
    affine = oblique_affine()
    affine[:3, 2] += 0.3 * affine[:3, 0]
    write_volume(Volume(subject(0)[0].array, Geometry((26, 24, 22), affine)), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(to_volumes(loaded(tmp_path / "a.nii.gz"))[0].geometry.affine, affine, atol=1e-5)


def test_volumes_of_a_batch_keep_their_own_grids(tmp_path: Path, network: nn.Module, prompts: Path) -> None:
    inferer = InContextInferer(ReferenceSource(prompts), preset="plain")  # a registration notices a file's rounding
    images = [subject(3)[0], Volume(subject(4)[0].array, Geometry((26, 24, 22), np.diag([1.0, 1.1, 1.3, 1.0])))]
    for number, image in enumerate(images):
        write_volume(image, tmp_path / f"{number}.nii.gz")
    dataset = Dataset([{"image": str(tmp_path / f"{number}.nii.gz")} for number in range(2)],
                      Compose([LoadVolumesd("image"), EnsureChannelFirstd("image")]))
    batch = next(iter(DataLoader(dataset, batch_size=2)))["image"]
    answers = inferer(batch, network).numpy()[:, 0]
    for answer, image in zip(answers, images, strict=True):
        np.testing.assert_array_equal(answer, answered(image, network, "plain"))


def test_a_plain_tensor_is_taken_as_millimetres_with_a_warning(network: nn.Module, prompts: Path) -> None:
    array = subject(3)[0].array
    inferer = InContextInferer(ReferenceSource(prompts), preset="plain")
    with pytest.warns(PredictionWarning, match="without an affine"):
        answer = inferer(torch.from_numpy(array)[None, None], network)
    assert type(answer) is torch.Tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = answered(Volume.from_array(array), network, preset="plain")
    np.testing.assert_array_equal(answer.numpy()[0, 0], wanted)


@pytest.mark.parametrize("reader", [None, LoadImaged("image")], ids=["ours", "MONAI's"])
def test_a_picture_looks_as_it_does_to_the_library(tmp_path: Path, network: nn.Module, reader: Any) -> None:
    image, label = (volume.array[:, :, 10:11].clip(0).astype(np.uint8) for volume in subject(5))
    picture = Geometry(image.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))
    write_volume(Volume(image, picture), tmp_path / "a.png")
    write_volume(Volume(label, picture), tmp_path / "b.png")
    batch = loaded(tmp_path / "a.png", reader)
    inferer = InContextInferer(ReferenceSource("nowhere", [str(tmp_path / "a.png"), str(tmp_path / "b.png")]))
    answer = inferer(torch.flip(batch, [2]), network)
    query = read_volume(tmp_path / "a.png")
    reference = Reference(query, read_volume(tmp_path / "b.png"))
    mirrored = query.with_array(query.array[::-1].copy())
    wanted = VolumeEngine(Predictor(TorchBackend(network, "cpu"))).solve(mirrored, reference)
    np.testing.assert_array_equal(answer.numpy().reshape(image.shape), wanted.volume.array)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (8, 8, 8), (1, 3, 8, 8)])
def test_other_shapes_are_refused(network: nn.Module, inferer: InContextInferer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needed \(B, 1, I, J, K\)"):
        inferer(torch.rand(shape), network)


# --- tasks and networks ---


def test_images_are_painted_in_their_own_units(network: nn.Module, tmp_path: Path) -> None:
    clean, _ = subject(5)
    noisy = clean.with_array(clean.array + 5)
    add_case(tmp_path, noisy, clean, name="n", task="denoising")
    image, _ = subject(3)
    write_volume(image, tmp_path / "a.nii.gz")
    answer = InContextInferer(ReferenceSource(tmp_path))(loaded(tmp_path / "a.nii.gz"), network)
    engine, query = VolumeEngine(Predictor(TorchBackend(network, "cpu"))), read_volume(tmp_path / "a.nii.gz")
    wanted = engine.solve(query, ReferenceSource(tmp_path)()[0], Task.denoising())
    assert answer.dtype == torch.float32
    np.testing.assert_array_equal(answer.numpy()[0, 0], wanted.volume.array)


def test_holes_come_as_a_further_tensor(network: nn.Module, tmp_path: Path) -> None:
    image, label = subject(5)
    add_case(tmp_path, image, image, name="n", task="inpainting")
    write_volume(subject(3)[0], tmp_path / "a.nii.gz")
    batch = loaded(tmp_path / "a.nii.gz")
    hole = torch.from_numpy(label.array == 2)[None, None]
    answer = InContextInferer(ReferenceSource(tmp_path))(batch, network, hole)
    changed = answer.numpy() != batch.numpy()
    assert changed.any()
    assert not changed[~hole.numpy()].any()


def test_a_wrapped_network_is_taken_out_of_its_wrapper(inferer: InContextInferer, network: nn.Module, data: Path
                                                       ) -> None:
    batch = loaded(data / "image3.nii.gz")
    wrapped = nn.Module()
    wrapped.module = network
    torch.testing.assert_close(inferer(batch, wrapped), inferer(batch, network))


def test_exported_networks_are_refused_with_a_reason(inferer: InContextInferer, data: Path) -> None:
    with pytest.raises(ValueError, match="is a Identity, which cannot encode prompts"):
        inferer(loaded(data / "image3.nii.gz"), nn.Identity())


def test_another_network_gives_another_answer(inferer: InContextInferer, network: nn.Module, data: Path) -> None:
    batch = loaded(data / "image3.nii.gz")
    assert not torch.equal(inferer(batch, network), inferer(batch, tiny_painter(seed=1)))


def test_settings_reach_the_engine(prompts: Path, network: nn.Module, data: Path) -> None:
    batch = loaded(data / "image3.nii.gz")
    plain: dict[str, Any] = {"preset": "plain"}
    choices = [plain, {**plain, "plane": "sagittal"}, {**plain, "window": [0, 100]}, {}, {"preset": "fast"},
               {"parts": {"prior": "off"}}]
    answers = [InContextInferer(ReferenceSource(prompts), **settings)(batch, network) for settings in choices]
    assert all(not torch.equal(answers[0], other) for other in answers[1:])
    with pytest.raises(ValueError, match="n_prompts must be at least 1"):
        InContextInferer(ReferenceSource(prompts), parts={"n_prompts": 0})


# --- the reader ---


def test_label_maps_are_read_as_the_library_reads_them(tmp_path: Path, prompts: Path, network: nn.Module) -> None:
    path, (image, _) = add_reader(tmp_path), subject(3)
    write_volume(image, tmp_path / "a.nii.gz")
    batch = loaded(tmp_path / "a.nii.gz")
    with_it, without = (InContextInferer(ReferenceSource(prompts), preset="plain", reader=reader)
                        for reader in (path, None))
    answer = with_it(batch, network)
    np.testing.assert_array_equal(answer.numpy()[0, 0], answered(image, network, "plain", load_reader(path)))
    assert not torch.equal(answer, without(batch, network))


def test_readers_that_are_not_right_are_refused_before_anything_is_answered(tmp_path: Path, prompts: Path) -> None:
    source = ReferenceSource(prompts)
    with pytest.raises(WeightsError, match=r"no reader .*model_reader\.pt: restore it"):
        InContextInferer(source, reader=str(tmp_path / "model_reader.pt"))
    path = add_reader(tmp_path)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(WeightsError, match=r"model_reader\.pt was changed or damaged"):
        InContextInferer(source, reader=path)
    with pytest.raises(CheckpointError, match="holds a 'compact' network where a reader is needed"):
        InContextInferer(source, reader=write_weights(tmp_path / "model.pt"))


@pytest.mark.parametrize("said", [{}, {"reader": "$None"}, {"reader": "other.pt"}])
def test_the_config_takes_the_reader_of_the_bundle_if_it_is_there(tmp_path: Path, said: dict[str, str]) -> None:
    def reader() -> Any:
        parser = ConfigParser({**ConfigParser.load_config_file(CONFIGS / "inference.json"),
                               "bundle_root": str(tmp_path), **said})
        assert parser.get("inferer")["reader"] == "@reader"
        return parser.get_parsed_content("reader")

    (tmp_path / "models").mkdir()
    otherwise = None if said.get("reader") != "other.pt" else "other.pt"
    assert reader() == otherwise
    path = add_reader(tmp_path / "models")
    assert reader() == (otherwise if said else path)


# --- references ---


def test_a_case_that_is_added_serves_the_next_call(tmp_path: Path) -> None:
    source = ReferenceSource(tmp_path)
    add_case(tmp_path, *subject(0), name="a")
    first, _ = source()
    assert source()[0] is first  # not read again
    add_case(tmp_path, *subject(1), name="b")
    assert [reference.name for reference in source()[0]] == ["a", "b"]


def test_references_are_those_named_else_the_lists_else_the_folders(data: Path, prompts: Path) -> None:
    pair = [str(data / "image0.nii.gz"), str(data / "label0.nii.gz")]
    listing = str(data / "datalist.json")

    def names(*arguments: Any) -> list[str]:
        return [case.name for case in ReferenceSource(prompts, *arguments).cases()]

    assert names() == ["phantom"]
    assert names(None, str(data)) == ["phantom"]  # a folder of images names none
    assert names(None, listing) == ["s5"]
    assert names(pair, listing) == ["reference 1"]
    assert names([pair, pair]) == ["reference 1", "reference 2"]
    assert names({"image": pair[0], "label": pair[1], "name": "x"}) == ["x"]
    assert names(listing) == ["s5"]


def test_labels_of_a_datalist_come_along(data: Path) -> None:
    _, task = ReferenceSource("nowhere", None, str(data / "datalist.json"))()
    assert task == Task.segmentation(LABELS)


def test_an_item_without_answer_is_no_reference(data: Path, tmp_path: Path) -> None:
    items = [{"image": str(data / "image0.nii.gz"), "task": "denoising", "subject": "s0"}]
    (tmp_path / "list.json").write_text(json.dumps({"references": items}))
    with pytest.raises(PromptsError, match=r"list\.json: the item of 's0' has no answer"):
        ReferenceSource("nowhere", str(tmp_path / "list.json")).cases()


@pytest.mark.parametrize("given", [["a", "b", "c"], [3], {"image": "a"}, [["a"]]])
def test_references_that_are_no_pairs_are_refused(given: Any) -> None:
    with pytest.raises(PromptsError, match="give image and label file"):
        ReferenceSource("nowhere", given).cases()


# --- what is predicted ---


def test_a_folder_is_its_images_and_its_dicom_folders(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.PNG", ".hidden.nii", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").touch()
    (tmp_path / "empty").mkdir()
    found = [Path(item["image"]).name for item in images_to_predict(str(tmp_path), "test")]
    assert found == ["a.PNG", "b.nii.gz", "series"]
    assert images_to_predict(str(tmp_path / "series"), "test") == [{"image": str(tmp_path / "series")}]
    with pytest.raises(FileNotFoundError, match="no image in this folder"):
        images_to_predict(str(tmp_path / "empty"), "test")


def test_a_datalist_is_the_items_of_its_split(data: Path) -> None:
    for split, subjects in (("test", ["s3", "s4"]), ("validation", ["s2"])):
        assert [item["subject"] for item in images_to_predict(data / "datalist.json", split)] == subjects


def test_contrasts_and_pairs_become_one_image() -> None:
    assert images_to_predict([{"image": {"t1": "a", "t2": "b"}}], "test") == [{"image": "a"}]
    (pair,) = images_to_predict([{"source": "a", "target": "b"}], "test")
    assert (pair["image"], pair["label"]) == ("a", "b")
    with pytest.raises(ValueError, match="has no image"):
        images_to_predict([{"image": None, "subject": "x"}], "test")

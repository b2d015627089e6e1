"""Datalists: what an item inherits, and one clear line with both paths for everything that cannot be used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from miniature import write_ct, write_label_maps, write_listing, write_mr, write_pictures

from mvg_core.training.datalist import (
    DatalistError,
    convert_dataset_json,
    files_of,
    label_table,
    read_datalist,
    read_datalists,
    split_by_subject,
    write_datalist,
)
from mvg_core.training.datasets import RefusedDataError, read_training_set

REPOSITORY = Path(__file__).resolve().parents[1]
LIVER = {"name": "livers", "modality": "CT", "labels": {"0": "background", "1": "liver"}}


def listed(folder: Path, items: list[Any] | None = None, name: str = "list.json", **changes: Any) -> Path:
    """A datalist whose files exist, as far as its items are usable."""
    items = [{"image": "a.nii.gz", "label": "a_label.nii.gz"}] if items is None else items
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        for value in item.values() if isinstance(item, dict) else [item]:
            if isinstance(value, str) and value.endswith((".nii.gz", ".png")) and not Path(value).is_absolute():
                (folder / value).parent.mkdir(parents=True, exist_ok=True)
                (folder / value).touch()
    (folder / name).write_text(json.dumps({**LIVER, "training": items, **changes}))
    return folder / name


# --- what is read ---


def test_an_item_inherits_what_its_list_says(tmp_path):
    path = listed(tmp_path, [{"image": "scans/a.nii.gz", "label": "b.nii.gz", "fold": 3}], weight=2)
    assert read_datalist(path, "training") == [{
        "image": str(tmp_path / "scans" / "a.nii.gz"), "label": str(tmp_path / "b.nii.gz"), "subject": "a", "fold": 3,
        "task": "segmentation", "modality": "CT", "labels": {1: "liver"}, "merge": {}, "weight": 2.0,
        "dataset": "livers", "datalist": str(path)}]


def test_an_item_may_say_otherwise(tmp_path):
    path = listed(tmp_path, [{"image": "a.nii.gz", "label": "b.nii.gz", "subject": 7, "modality": "MR", "weight": 3,
                              "labels": {"spleen": 2}, "merge": {"5": 2}}])
    (item,) = read_datalist(path, "training")
    assert (item["subject"], item["modality"], item["labels"], item["merge"], item["weight"]) == (
        "7", "MR", {2: "spleen"}, {5: 2}, 3.0)


def test_the_decathlon_and_people_in_a_hurry_write_less(tmp_path):
    path = listed(tmp_path, [], name="dataset.json", name_="", modality={"0": "FLAIR", "1": "T1w"}, labels=None,
                  test=["./x.nii.gz"], training=[{"image": "./y.nii.gz", "label": "z.nii.gz"}])
    for name in ("x", "y", "z"):
        (tmp_path / f"{name}.nii.gz").touch()
    (test,), (training,) = (read_datalist(path, split) for split in ("test", "training"))
    assert (test["image"], test["subject"], test["modality"]) == (str(tmp_path / "x.nii.gz"), "x", "FLAIR, T1w")
    assert training["labels"] == {}
    (tmp_path / "hearts.json").write_text(json.dumps({"training": [{"image": "y.nii.gz", "label": "z.nii.gz"}]}))
    assert read_datalist(tmp_path / "hearts.json", "training")[0]["dataset"] == "hearts"


def test_contrasts_pairs_and_label_maps(tmp_path):
    path = listed(tmp_path, [
        {"image": {"t1": "a_t1.nii.gz", "t2": "a_t2.nii.gz"}, "task": "synthesis", "subject": "a"},
        {"source": "b_low.nii.gz", "target": "b_full.nii.gz", "task": "denoising"},
        {"image": None, "label": "c.nii.gz"}])
    for name in ("a_t1", "a_t2"):
        (tmp_path / f"{name}.nii.gz").touch()
    contrasts, pair, maps = read_datalist(path, "training")
    assert contrasts["image"] == {name: str(tmp_path / f"a_{name}.nii.gz") for name in ("t1", "t2")}
    assert (contrasts["task"], contrasts["labels"]) == ("synthesis", {})
    assert (pair["task"], pair["subject"], "image" in pair) == ("denoising", "b_low", False)
    assert (maps["image"], maps["subject"], files_of(maps)) == (None, "c", [str(tmp_path / "c.nii.gz")])


def test_a_pair_without_task_is_a_synthesis_unless_its_list_says_otherwise(tmp_path):
    pair = [{"source": "a.png", "target": "b.png"}]
    assert read_datalist(listed(tmp_path, pair), "training")[0]["task"] == "synthesis"
    assert read_datalist(listed(tmp_path, pair, task="inpainting"), "training")[0]["task"] == "inpainting"
    with pytest.raises(DatalistError, match="its task is segmentation: set 'task' to one of denoising, inpainting"):
        read_datalist(listed(tmp_path, pair, task="segmentation"), "training")


@pytest.mark.parametrize("labels", [{"1": "liver", "2": "left kidney"}, {"liver": 1, "left kidney": "2"},
                                    {"0": "background", 1: "liver", "2": " left kidney "}, {"background": 0, "liver": 1,
                                                                                            "left kidney": 2}])
def test_tables_of_labels_are_read_either_way_round(labels):
    assert label_table(labels, "x") == {1: "liver", 2: "left kidney"}


def test_reading_a_list_needs_neither_torch_nor_monai(tmp_path):
    code = ("import sys; from mvg_core.training.datalist import read_datalist; "
            f"read_datalist({str(listed(tmp_path))!r}, 'training'); print({{'torch', 'monai'}} & set(sys.modules))")
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "set()\n"


# --- what is refused ---


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"label": "b.nii.gz"}, r"has a 'label' but no 'image': add its path"),
        ({"subject": "a"}, r"has no 'image': add its path"),
        ({"image": "a.nii.gz"}, r"has an 'image' but no 'label': add the label, or set 'task'"),
        ({"image": None}, r"has neither 'image' nor 'label'"),
        ({"source": "a.nii.gz"}, r"has no 'target': an image-to-image item needs"),
        ({"target": "a.nii.gz", "image": "b.nii.gz"}, r"has no 'source'"),
        ({"source": "a.png", "target": "b.png", "label": "c.png"}, r"has both 'source' and 'image' or 'label'"),
        ({"image": ["a.nii.gz"], "label": "b.nii.gz"}, r"'image' is \['a.nii.gz'\], needed a path or \{contrast"),
        ({"image": "a.nii.gz", "label": ""}, r"'label' is '', needed a path"),
        ({"image": {"t1": 3}, "label": "b.nii.gz"}, r"'image t1' is 3, needed"),
        ({"image": "a.nii.gz", "label": "b.nii.gz", "task": "segment"}, r"task 'segment' is unknown: use one of segm"),
        ({"image": "a.nii.gz", "label": "b.nii.gz", "weight": -1}, r"weight must be a number, 0 or more, got -1"),
        ({"image": "a.nii.gz", "label": "b.nii.gz", "merge": {"3": 400}}, r"merge must map label numbers"),
        (["a.nii.gz", "b.nii.gz"], r"is a list, needed an object"),
    ],
)
def test_an_unusable_item_is_named_with_its_list(tmp_path, item, message):
    good = {"image": "g.nii.gz", "label": "gl.nii.gz"}
    path = listed(tmp_path, [good, item])
    with pytest.raises(DatalistError, match=message) as caught:
        read_datalist(path, "training")
    assert str(caught.value).startswith(f"{path}: training[1]")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"300": "liver"}, "label 300 is outside 0 to 255: renumber it"),
        ({"1": ""}, "label 1 has no name"),
        ({"1": 3}, "label 1 has no name, got 3"),
        ({"liver": "right"}, "label 'liver': 'right' has no number"),
        ({"liver": True}, "label 'liver': True has no number"),
        ({"1": "liver", "2": "Liver"}, "two labels are called 'liver'"),
        ({"1": "liver", "spleen": 1}, "label 1 is named twice, 'liver' and 'spleen'"),
        (["liver"], "labels must be such as"),
    ],
)
def test_an_unusable_table_of_labels_is_refused(tmp_path, labels, message):
    with pytest.raises(DatalistError, match=rf"list\.json: {message}"):
        read_datalist(listed(tmp_path, labels=labels), "training")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": [}', r"is no valid JSON: Expecting value in line 1, column 15"),
        ("", r"is no valid JSON: Expecting value in line 1, column 1"),
        ("[]", r"holds a list, needed an object with a list 'training'"),
        ('{"training": {"image": "a"}}', r"'training' must be a list of items"),
        ('{"task": "segment", "training": []}', r"task 'segment' is unknown"),
        ('{"datalists": ["a.json"]}', r"is a mixture of datalists, needed one datalist: use read_datalists"),
    ],
)
def test_a_malformed_list_is_refused(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DatalistError, match=rf"list\.json: {message}"):
        read_datalist(tmp_path / "list.json", "training")


def test_a_list_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "list.json").write_bytes(b"\x1f\x8b\x08\x00\xff")
    with pytest.raises(DatalistError, match=r"list\.json: is no JSON text in UTF-8"):
        read_datalist(tmp_path / "list.json", "training")
    with pytest.raises(DatalistError, match="is a folder: give the JSON file"):
        read_datalist(tmp_path, "training")
    with pytest.raises(FileNotFoundError, match=r"no datalist .*other\.json: check the path"):
        read_datalist(tmp_path / "other.json", "training")


def test_a_split_without_items_is_explained(tmp_path):
    path = listed(tmp_path, val=[{"image": "a"}])
    with pytest.raises(DatalistError, match=r"list\.json: has no items in 'validation' \(do you mean 'val'\?\): list "
                                            r"some subjects there, or split the training items with split_by_subject"):
        read_datalist(path, "validation")
    with pytest.raises(DatalistError, match=r"has no items in 'test' \(it has training, val\): add a list \"test\""):
        read_datalist(path, "test")
    with pytest.raises(DatalistError, match="unknown split 'train', use one of training"):
        read_datalist(path, "train")
    assert read_datalist(path, "validation", allow_missing=True) == []


def test_a_missing_file_is_named_with_item_and_list(tmp_path):
    path = listed(tmp_path, [{"image": "a.nii.gz", "label": "b.nii.gz", "subject": "p1"}])
    (tmp_path / "b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"list\.json: training\[0\] \(p1\): .*b\.nii\.gz is missing"):
        read_datalist(path, "training")
    assert len(read_datalist(path, "training", allow_missing=True)) == 1


def test_files_of_one_name_in_several_folders_need_subjects(tmp_path):
    items = [{"image": f"case{k}/image.nii.gz", "label": f"case{k}/label.nii.gz"} for k in range(2)]
    with pytest.raises(DatalistError, match=r"training\[1\]: its file has the name of that of training\[0\], which "
                                            r"lies in another folder: give both items a 'subject'"):
        read_datalist(listed(tmp_path, items), "training")
    named = [item | {"subject": f"case{k}"} for k, item in enumerate(items)]
    assert [item["subject"] for item in read_datalist(listed(tmp_path, named), "training")] == ["case0", "case1"]


def test_an_unlabelled_image_may_be_tested_on(tmp_path):
    path = listed(tmp_path, test=[{"image": "a.nii.gz"}])
    assert "label" not in read_datalist(path, "test")[0]


def test_a_list_of_unseen_data_is_not_for_training(tmp_path):
    path = listed(tmp_path, role="unseen", test=[{"image": "a.nii.gz"}])
    with pytest.raises(RefusedDataError, match=r"list\.json: has role 'unseen', only role 'train' may be trained on"):
        read_datalist(path, "training")
    assert read_datalist(path, "test")[0]["role"] == "unseen"  # a SliceDataset will refuse it


# --- mixtures ---


def test_lists_are_mixed_with_weights(tmp_path):
    first = listed(tmp_path / "one", weight=3)
    listed(tmp_path / "two", name="other.json", labels={"1": "spleen"})
    (tmp_path / "mixture.json").write_text(json.dumps({"datalists": ["one/list.json", {"path": "two/other.json",
                                                                                      "weight": 0.5}]}))
    mixed = read_datalists(tmp_path / "mixture.json", "training")
    assert [(Path(item["datalist"]).name, item["weight"], item["labels"]) for item in mixed] == [
        ("list.json", 3.0, {1: "liver"}), ("other.json", 0.5, {1: "spleen"})]
    doubled = read_datalists([{"path": first, "weight": 2}, tmp_path / "two" / "other.json"], "training")
    assert [item["weight"] for item in doubled] == [6.0, 1.0]
    assert read_datalists(str(first), "training") == read_datalist(first, "training")


def test_a_list_may_lack_a_split_that_another_has(tmp_path):
    first, second = listed(tmp_path / "one"), listed(tmp_path / "two", validation=[{"image": "a.nii.gz",
                                                                                    "label": "a_label.nii.gz"}])
    assert len(read_datalists([first, second], "validation")) == 1
    with pytest.raises(DatalistError, match="none of the 2 datalists has items in 'test'"):
        read_datalists([first, second], "test")
    with pytest.raises(DatalistError, match=r"list\.json: has no items in 'validation'"):
        read_datalists(first, "validation")


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"datalists": []}, "needed a list of datalists with at least one entry"),
        ({"lists": ["a.json"]}, "needed a list of datalists"),
        ([{"weight": 2}], r"\{'weight': 2\}, needed \"list.json\" or"),
        ([{"path": "a.json", "wieght": 2}], "unknown key 'wieght'"),
        ([{"path": "a.json", "weight": "2"}], "weight must be a number"),
        ([3], "3, needed"),
    ],
)
def test_a_malformed_mixture_is_refused(mixture, message):
    with pytest.raises(DatalistError, match=message):
        read_datalists(mixture, "training")


def test_a_mixture_of_mixtures_is_refused(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"datalists": ["m.json"]}))
    with pytest.raises(DatalistError, match=r"m\.json: is a mixture of datalists, needed one datalist"):
        read_datalists(tmp_path / "m.json", "training")


# --- splitting ---


def items_of(subjects: dict[str, int], dataset: str = "d") -> list[dict[str, Any]]:
    return [{"dataset": dataset, "subject": name, "image": f"{dataset}{name}{k}"} for name, count in subjects.items()
            for k in range(count)]


def test_a_split_by_subject_never_divides_a_subject():
    items = items_of({f"s{k}": 1 + k % 3 for k in range(10)}) + items_of({"s1": 2, "s2": 1}, "e")
    training, validation = split_by_subject(items, 0.3, seed=4)
    sides = [{(item["dataset"], item["subject"]) for item in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert len([owner for owner in sides[1] if owner[0] == "d"]) == 3
    assert len([owner for owner in sides[1] if owner[0] == "e"]) == 1
    assert [item["image"] for item in items if item in training] == [item["image"] for item in training]
    assert len(training) + len(validation) == len(items)


def test_a_split_depends_on_the_seed_and_not_on_the_order():
    items = items_of({f"s{k}": 1 for k in range(12)})

    def held_out(seed: int, order: int = 1) -> set[str]:
        return {item["subject"] for item in split_by_subject(items[::order], 0.25, seed)[1]}

    assert held_out(0) == held_out(0, -1)
    assert len({frozenset(held_out(seed)) for seed in range(6)}) > 1


def test_bare_items_are_split_by_their_files():
    training, validation = split_by_subject([{"image": f"/d/{k}.nii.gz", "label": "l"} for k in range(4)], 0.5)
    assert len(training) == len(validation) == 2


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share must be above 0 and below 1"):
        split_by_subject(items_of({"a": 1, "b": 1}), share)


def test_one_subject_cannot_be_split():
    with pytest.raises(ValueError, match="a split needs two subjects"):
        split_by_subject(items_of({"a": 5}))


# --- writing and converting ---


def test_what_is_written_is_read_again(tmp_path):
    original = listed(tmp_path / "data")
    (item,) = read_datalist(original, "training")
    copy = {**LIVER, "training": [{"image": item["image"], "label": item["label"], "subject": "a"}]}
    write_datalist(tmp_path / "data" / "copy.json", copy)
    written = json.loads((tmp_path / "data" / "copy.json").read_text())
    assert written["training"] == [{"image": "a.nii.gz", "label": "a_label.nii.gz", "subject": "a"}]
    write_datalist(tmp_path / "elsewhere.json", copy)
    assert json.loads((tmp_path / "elsewhere.json").read_text())["training"][0]["image"] == "data/a.nii.gz"
    (again,) = read_datalist(tmp_path / "elsewhere.json", "training")
    assert {**again, "datalist": ""} == {**item, "datalist": ""}
    with pytest.raises(FileExistsError, match=r"copy\.json exists: choose another name"):
        write_datalist(tmp_path / "data" / "copy.json", copy)


def test_what_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(DatalistError, match=r"training\[0\]: has an 'image' but no 'label'"):
        write_datalist(tmp_path / "list.json", {"training": [{"image": "a.nii.gz"}]})
    assert not (tmp_path / "list.json").exists()


@pytest.mark.parametrize("write", [write_mr, write_ct, write_label_maps, write_pictures])
def test_a_converted_folder_lists_what_may_be_trained_on(tmp_path, write):
    folder = write(tmp_path / "set")
    write_datalist(tmp_path / "list.json", convert_dataset_json(folder))
    items = read_datalist(tmp_path / "list.json", "training")
    expected = read_training_set(folder)
    assert [item["subject"] for item in items] == [item.subject for item in expected.items]
    for item, known in zip(items, expected.items, strict=True):
        images = item["image"] if isinstance(item["image"], dict) else {"image": item["image"]} if item["image"] else {}
        assert images == {name: str(path) for name, path in known.images.items()}
        assert item.get("label") == str(known.label)
        assert item["merge"] == expected.merged_labels


def test_a_converted_folder_keeps_its_validation_and_its_images_without_labels(tmp_path):
    folder = write_mr(tmp_path / "mr", n_subjects=2)
    listing = json.loads((folder / "dataset.json").read_text())
    del listing["training"][0]["label"]
    del listing["training"][1]["label"], listing["training"][1]["t2"]
    write_listing(folder, listing)
    converted = convert_dataset_json(folder)
    assert [item.get("task") for item in converted["training"]] == ["synthesis", "denoising"]
    assert [item["subject"] for item in converted["validation"]] == ["s2"]
    assert (converted["name"], converted["modality"], converted["labels"]["2"]) == ("mr", "MR", "ball")


def test_a_converted_folder_never_lists_an_unseen_role(tmp_path):
    with pytest.raises(RefusedDataError, match="heart has role 'unseen': only role 'train' may be trained on"):
        convert_dataset_json(write_listing(tmp_path / "heart", {"role": "unseen"}))


def test_a_converted_folder_never_lists_a_test_split(tmp_path):
    folder = write_mr(tmp_path / "mr")
    with pytest.raises(RefusedDataError, match="split 'test' of mr is not for training"):
        convert_dataset_json(folder, ["training", "test"])
    listing = json.loads((folder / "dataset.json").read_text())
    write_listing(folder, listing | {"test": listing["training"][:1], "training": listing["training"][1:]})
    assert "s0" not in json.dumps(convert_dataset_json(folder))


def test_a_converted_folder_never_lists_pet(tmp_path):
    converted = convert_dataset_json(write_ct(tmp_path / "ct"))
    assert converted["training"]
    assert "pet" not in json.dumps(converted["training"]).lower().replace("/ct/", "/")


def test_a_converted_folder_merges_the_hippocampi(tmp_path):
    folder = write_label_maps(tmp_path / "maps")
    listing = json.loads((folder / "dataset.json").read_text())
    converted = convert_dataset_json(write_listing(folder, listing | {"labels": {str(k): f"L{k}" for k in range(6)}}))
    assert converted["merge"] == {"3": 1, "4": 2}
    assert converted["labels"] == {"1": "L1", "2": "L2", "5": "L5"}


def test_hippocampi_are_merged_also_where_a_listing_is_read_as_it_is(tmp_path):
    folder = write_label_maps(tmp_path / "maps")
    listing = json.loads((folder / "dataset.json").read_text())
    write_listing(folder, listing | {"training": [entry | {"image": None} for entry in listing["training"]]})
    assert read_datalist(folder / "dataset.json", "training")[0]["merge"] == {3: 1, 4: 2}


# --- documentation ---


@pytest.mark.parametrize("page", ["docs/reference/datalist.md", "docs/how-to/own-data.md"])
def test_the_lists_in_the_documentation_can_be_read(tmp_path, page):
    blocks = re.findall(r"```json\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        listing = json.loads(block)
        (tmp_path / f"{listing.get('name', 'mixture')}.json").write_text(block)
        if "datalists" in listing:
            assert len(read_datalists(tmp_path / "mixture.json", "training", allow_missing=True)) == 4
        else:
            assert len(read_datalist(tmp_path / f"{listing['name']}.json", "training", allow_missing=True)) == 2

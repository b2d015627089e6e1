"""The folder of images and labels: nothing is lost when a server is killed or other processes write to it, too."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lib.store import StudiesFolder
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume

LIST = "datastore_v2.json"


def volume(value: int) -> Volume:
    array = np.full((6, 5, 4), value, np.uint8)
    return Volume(array, Geometry(array.shape, np.eye(4)))


def saved(path: Path, value: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume(value), path, overwrite=True)
    return str(path)


def named(name: str) -> dict:
    return {"label_info": [{"name": name, "idx": 1}]}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for one in ("a", "b"):
        saved(tmp_path / "studies" / f"{one}.nii.gz", 7)
    return tmp_path / "studies"


def opened(studies: Path) -> StudiesFolder:
    return StudiesFolder(str(studies), extensions=["*.nii.gz", "*.nrrd"])


def killed_at(number: int, work: Callable[[], object]) -> None:
    """Do something in a process that is killed (SIGKILL) when it renames a file for the so-manieth time."""
    child = os.fork()
    if not child:
        rename, left = os.replace, number

        def replace(*paths: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)

        os.replace = replace  # type: ignore[assignment]
        try:
            work()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("at", [1, 2])
def test_a_server_that_is_killed_while_it_saves_loses_nothing(studies: Path, tmp_path: Path, at: int) -> None:
    opened(studies).save_label("a", saved(tmp_path / "first.nii.gz", 1), "final", named("liver"))

    killed_at(at, lambda: opened(studies).save_label("b", saved(tmp_path / "second.nii.gz", 2), "final",
                                                     named("spleen")))

    store = opened(studies)
    assert store.get_label_info("a", "final")["label_info"] == named("liver")["label_info"]
    assert set(store.list_images()) == {"a", "b"}
    for one in store.get_labeled_images():
        assert read_volume(store.get_label_uri(one, "final")).array.max() == {"a": 1, "b": 2}[one]
    store.save_label("b", saved(tmp_path / "second.nii.gz", 2), "final", named("spleen"))  # not locked
    assert store.get_label_info("b", "final")["label_info"] == named("spleen")["label_info"]


def test_processes_do_not_overwrite_what_others_saved(studies: Path, tmp_path: Path) -> None:
    server, batch = opened(studies), opened(studies)

    server.save_label("a", saved(tmp_path / "label.nii.gz", 1), "final", named("liver"))
    batch.save_label("b", saved(tmp_path / "answer.nii.gz", 1), "original", {"params": {"quality": 0.5}})
    server.update_image_info("b", {"seen": True})

    for store in (server, opened(studies)):
        assert store.get_label_info("a", "final")["label_info"] == named("liver")["label_info"]
        assert store.get_label_info("b", "original")["params"] == {"quality": 0.5}
        assert store.get_image_info("b")["seen"] is True


def test_a_damaged_list_is_put_aside_and_made_anew(studies: Path, tmp_path: Path) -> None:
    opened(studies).save_label("a", saved(tmp_path / "label.nii.gz", 1), "final", named("liver"))
    text = (studies / LIST).read_text()
    (studies / LIST).write_text(text[: len(text) // 2])

    store = opened(studies)

    assert store.get_labeled_images() == ["a"]
    assert [path.read_text() for path in studies.glob("*.damaged-*.json")] == [text[: len(text) // 2]]
    assert json.loads((studies / LIST).read_text())["objects"]["a"]["labels"]["final"]


def test_files_put_there_by_hand_are_found_and_removed_ones_forgotten(studies: Path) -> None:
    store = opened(studies)
    saved(studies / "c.nrrd", 3)
    saved(studies / "labels" / "final" / "c.nii.gz", 1)
    saved(studies / "labels" / "final" / "nobody.nii.gz", 1)
    (studies / "a.nii.gz").unlink()

    store.refresh()

    assert set(store.list_images()) == {"b", "c"}
    assert store.get_labeled_images() == ["c"]
    assert Path(store.get_image_uri("c")).name == "c.nrrd"


def test_what_a_killed_server_left_half_written_is_no_image_and_is_removed_later(studies: Path) -> None:
    fresh, old = studies / ".1.part", studies / ".2.part"
    hidden = studies / ".3.nii.gz"
    for path in (fresh, old, hidden):
        path.write_bytes(b"half")
    before = time.time() - 7200
    os.utime(old, (before, before))

    assert set(opened(studies).list_images()) == {"a", "b"}
    assert (fresh.exists(), old.exists()) == (True, False)


def test_a_label_in_another_format_replaces_the_one_before(studies: Path, tmp_path: Path) -> None:
    store = opened(studies)
    store.save_label("a", saved(tmp_path / "label.nii.gz", 1), "final", {})
    store.save_label("a", saved(tmp_path / "label.nrrd", 2), "final", {})

    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["a.nrrd"]
    assert read_volume(opened(studies).get_label_uri("a", "final")).array.max() == 2


def test_what_was_removed_is_gone_at_once(studies: Path, tmp_path: Path) -> None:
    store = StudiesFolder(str(studies), extensions=["*.nii.gz"], auto_reload=True)  # as the server has it
    store.save_label("a", saved(tmp_path / "label.nii.gz", 1), "final", {})

    store.remove_label("a", "final")
    store.remove_image("b")

    assert (store.get_labeled_images(), store.list_images()) == ([], ["a"])


def test_a_watched_folder_hears_of_what_another_process_saved(studies: Path, tmp_path: Path) -> None:
    server = StudiesFolder(str(studies), extensions=["*.nii.gz"], auto_reload=True)

    opened(studies).save_label("a", saved(tmp_path / "label.nii.gz", 1), "final", named("liver"))

    deadline = time.monotonic() + 20
    while not server.get_labeled_images() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.get_label_info("a", "final")["label_info"] == named("liver")["label_info"]

"""What a training of the bundle starts with, in which folder it works, and which weights it leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from bundles import write_data
from miniature import TINY, tiny_painter
from tiny import write_weights

from mvg_core.bundle.runs import keep_result, run_folder, with_weights
from mvg_core.network.checkpoint import load_network, save_atomically, save_weights
from mvg_core.network.errors import CheckpointError
from mvg_core.training import distributed
from mvg_core.training.checkpoints import RunFolder
from mvg_core.training.datalist import read_datalist
from mvg_core.weights import WeightsError


def test_without_a_file_the_network_keeps_its_weights() -> None:
    network = tiny_painter()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert with_weights(network, None) is network
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_weights_of_a_file_are_taken(tmp_path: Path) -> None:
    save_weights(tiny_painter(seed=1), tmp_path / "w.pt")
    network = with_weights(tiny_painter(seed=0), tmp_path / "w.pt")
    torch.testing.assert_close(network.state_dict(), load_network(tmp_path / "w.pt").state_dict())


def test_weights_whose_checksum_is_another_are_refused(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.pt", TINY)
    path.with_name("w.pt.sha256").write_text("0" * 64 + "  w.pt\n")
    with pytest.raises(WeightsError, match="was changed or damaged"):
        with_weights(tiny_painter(), path)


def test_weights_of_another_network_are_refused_by_their_path(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: the weights belong to another network"):
        with_weights(tiny_painter(), path)


def test_weights_that_lack_something_are_refused_in_one_line(tmp_path: Path) -> None:
    state = tiny_painter().state_dict()
    state.pop(next(iter(state)))
    save_atomically(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="does not fit the network of the config") as caught:
        with_weights(tiny_painter(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_the_same_items_go_on_in_their_folder_and_others_get_their_own(tmp_path: Path) -> None:
    listing = write_data(tmp_path / "data")
    items = read_datalist(listing, "training")
    folder = run_folder(tmp_path, items)
    assert run_folder(str(tmp_path), read_datalist(listing, "training")) == folder
    assert folder.parent == tmp_path
    assert run_folder(tmp_path, items[:1]) != folder
    assert run_folder(tmp_path, [{**item, "labels": {1: "x"}} for item in items]) != folder
    label = Path(items[0]["label"])
    os.utime(label, ns=(0, label.stat().st_mtime_ns + 1))  # as an editor that saves over it
    assert run_folder(tmp_path, items) != folder


def test_the_best_weights_are_kept_else_the_last(tmp_path: Path) -> None:
    run, result = RunFolder(tmp_path / "run"), tmp_path / "models" / "trained.pt"
    run.weights.write_bytes(b"last")
    keep_result(run, result)
    assert result.read_bytes() == b"last"
    run.best.write_bytes(b"best")
    keep_result(run, result)
    assert result.read_bytes() == b"best"
    assert [path.name for path in result.parent.iterdir()] == ["trained.pt"]


def test_only_the_first_process_keeps_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    run.weights.write_bytes(b"last")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    keep_result(run, tmp_path / "trained.pt")
    assert not (tmp_path / "trained.pt").exists()

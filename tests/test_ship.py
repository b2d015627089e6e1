"""A finished run becomes a weight file with a card and a checksum."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from miniature import tiny_painter
from tiny import READER, tiny_network

from mvg_core.network.checkpoint import load_network, save_weights
from mvg_core.network.config import NetworkConfig
from mvg_core.reader_backends import ONNX_OUTLINES, ONNX_TERMS
from mvg_core.training import ship
from mvg_core.training.reader_recipe import STAGE as READER_STAGE
from mvg_core.training.recipe import STAGES, TRAINING_SETS
from mvg_core.weights import check_checksum


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in TRAINING_SETS:
        (tmp_path / "data" / name).mkdir(parents=True)
        listing = {"licence": f"licence of {name}", "modality": "MR", "anatomy": "brain"}
        (tmp_path / "data" / name / "dataset.json").write_text(json.dumps(listing))
    return tmp_path / "data"


def write_record(folder: Path) -> Path:
    folder.mkdir()
    (folder / "record.jsonl").write_text('{"step": 5, "loss": 2.0}\n{"step": 10, "loss": 1.5}\n')
    return folder / "record.jsonl"


def test_shipped_weights_say_where_they_come_from(tmp_path, data, monkeypatch):
    record = write_record(tmp_path / "finish")
    save_weights(tiny_painter(), tmp_path / "weights.pt")
    output = tmp_path / "model.pt"
    monkeypatch.setattr(sys, "argv", ["ship", str(tmp_path / "weights.pt"), "--data", str(data),
                                      "--records", str(record), "--note", "a note", "--output", str(output)])
    ship.main()
    check_checksum(output)
    card = load_network(output).card
    assert card["name"] == "mvg_compact"
    assert [entry["licence"] for entry in card["training_data"]] == [f"licence of {name}" for name in TRAINING_SETS]
    (stage,) = card["stages"]
    assert (stage["stage"], stage["steps"], stage["episodes"]) == ("finish", 10, 10 * STAGES["finish"].batch)
    assert (stage["last_loss"], card["note"]) == (1.5, "a note")


def test_a_reader_is_shipped_in_a_file_of_its_own(tmp_path, data, monkeypatch):
    record = write_record(tmp_path / "reader")
    save_weights(tiny_network(READER), tmp_path / "weights.pt")
    monkeypatch.setitem(ship.SHIPPED_OF, "reader", ("mvg_reader", tmp_path / ship.SHIPPED_OF["reader"][1]))
    monkeypatch.setattr(sys, "argv", ["ship", str(tmp_path / "weights.pt"), "--data", str(data), "--records",
                                      str(record)])
    ship.main()
    output = tmp_path / "bundle" / "models" / "model_reader.pt"
    check_checksum(output)
    assert {path.name for path in output.parent.iterdir() if path.suffix != ".sha256"} == {
        "model_reader.pt", ONNX_TERMS, ONNX_OUTLINES}
    card = load_network(output).card
    assert card["name"] == "mvg_reader"
    assert card["objective"] == {"cross_entropy": 1.0, "dice": 1.0, "scores": 0.5}
    (stage,) = card["stages"]
    assert (stage["stage"], stage["episodes"], stage["size"]) == ("reader", 10 * READER_STAGE.batch, 128)


def test_a_network_that_is_not_shipped_is_refused(tmp_path, data, monkeypatch):
    config = NetworkConfig(architecture="vit", size=32, widths=(16,), heads=2, depth=2, position_grid=2, merge_after=1,
                           feature_blocks=(0, 1), decoder_width=8)
    save_weights(tiny_network(config), tmp_path / "weights.pt")
    monkeypatch.setattr(sys, "argv", ["ship", str(tmp_path / "weights.pt"), "--data", str(data), "--records",
                                      str(write_record(tmp_path / "finish")), "--output", str(tmp_path / "out.pt")])
    with pytest.raises(ValueError, match="holds a 'vit' network: shipped are compact, reader"):
        ship.main()
    assert not (tmp_path / "out.pt").exists()

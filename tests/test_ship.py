"""A finished run becomes a weight file with a card and a checksum."""

from __future__ import annotations

import json
import sys

from miniature import tiny_painter

from mvg_core.network.checkpoint import load_network, save_weights
from mvg_core.training import ship
from mvg_core.training.recipe import STAGES, TRAINING_SETS
from mvg_core.weights import check_checksum


def test_shipped_weights_say_where_they_come_from(tmp_path, monkeypatch):
    for name in TRAINING_SETS:
        (tmp_path / "data" / name).mkdir(parents=True)
        listing = {"licence": f"licence of {name}", "modality": "MR", "anatomy": "brain"}
        (tmp_path / "data" / name / "dataset.json").write_text(json.dumps(listing))
    record = tmp_path / "finish" / "record.jsonl"
    record.parent.mkdir()
    record.write_text('{"step": 5, "loss": 2.0}\n{"step": 10, "loss": 1.5}\n')
    save_weights(tiny_painter(), tmp_path / "weights.pt")
    output = tmp_path / "model.pt"
    monkeypatch.setattr(sys, "argv", ["ship", str(tmp_path / "weights.pt"), "--data", str(tmp_path / "data"),
                                      "--records", str(record), "--note", "a note", "--output", str(output)])
    ship.main()
    check_checksum(output)
    card = load_network(output).card
    assert [entry["licence"] for entry in card["training_data"]] == [f"licence of {name}" for name in TRAINING_SETS]
    (stage,) = card["stages"]
    assert (stage["stage"], stage["steps"], stage["episodes"]) == ("finish", 10, 10 * STAGES["finish"].batch)
    assert (stage["last_loss"], card["note"]) == (1.5, "a note")

r"""Turn the weights of a finished run into the file that is shipped, with a card that says where they come from.

python -m mvg_core.training.ship runs/maps/weights.pt --data ../shared/data \
    --records runs/{start,middle,finish,maps}/record.jsonl
python -m mvg_core.training.ship runs/reader/weights.pt --data ../shared/data --records runs/reader/record.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvg_core.network.checkpoint import load_network, save_weights
from mvg_core.network.export import export_onnx
from mvg_core.reader_backends import READER_SUFFIX
from mvg_core.training.maps_recipe import STAGE as MAPS
from mvg_core.training.reader_loss import OF_SCORES
from mvg_core.training.reader_recipe import STAGE as READER
from mvg_core.training.recipe import STAGES, TRAINING_SETS
from mvg_core.weights import file_sha256, record_checksum

SHIPPED = Path("bundle/models/model.pt")
SHIPPED_OF = {"compact": ("mvg_compact", SHIPPED),
              "reader": ("mvg_reader", SHIPPED.with_name(f"{SHIPPED.stem}{READER_SUFFIX}{SHIPPED.suffix}"))}
"""Architecture -> preset, and file that is shipped."""
OBJECTIVE_OF = {"mvg_compact": dataclasses.asdict(STAGES["finish"].objective),
                "mvg_reader": {"cross_entropy": 1.0, "dice": 1.0, "scores": OF_SCORES}}
LICENCE = "Apache-2.0"


def make_card(data_folder: Path, records: Sequence[Path], note: str = "", name: str = "mvg_compact") -> dict[str, Any]:
    """What `mvg info` tells about the weights.

    Args:
        data_folder: holds the data sets that were trained on; their licences are read from there.
        records: `record.jsonl` of every stage, each in a folder named after its stage.
        note: anything that the records do not say.
        name: preset of the network.

    Returns:
        JSON-serialisable: licence, intended use, training data, stages with their last line of record.
    """
    listings = {data: json.loads((data_folder / data / "dataset.json").read_text()) for data in TRAINING_SETS}
    stages = []
    for record in records:
        last = json.loads(record.read_text().splitlines()[-1])
        stage, steps = record.parent.name, last["step"]
        stages.append({"stage": stage, "steps": steps, **_described(stage, steps), "last_loss": last["loss"]})
    return {
        "name": name, "licence": LICENCE, "intended_use": "research only, no clinical use",
        "training_data": [{"name": data, "licence": listing["licence"], "modality": listing["modality"],
                           "anatomy": listing["anatomy"]} for data, listing in listings.items()],
        "never_trained_on": ["heart", "hippocampus", "chest radiographs", "PET", "MNI152 template"],
        "stages": stages,
        "note": note,
        "objective": OBJECTIVE_OF[name],
    }


def _described(stage: str, steps: int) -> dict[str, Any]:
    """Episodes, size, learning rate and seed of so many steps of a stage."""
    if stage == "maps":
        n_episodes, size, config = 1 + sum(number for _, number in MAPS.episodes), MAPS.side, MAPS
    elif stage == "reader":
        n_episodes, size, config = READER.batch, READER.episodes.size, READER
    else:
        config = STAGES[stage]
        n_episodes, size = config.batch * config.accumulate, config.episodes.size
    return {"episodes": steps * n_episodes, "size": size, "learning_rate": config.learning_rate, "seed": config.seed}


def main() -> None:
    """Write the weight file, its checksum, and the ONNX files that read its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="weights.pt of a finished run")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets, for their licences")
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="record.jsonl of every stage")
    parser.add_argument("--note", default="", help="anything that the records do not say")
    parser.add_argument("--output", type=Path, help="if not where that network is shipped")
    options = parser.parse_args()
    network = load_network(options.weights)
    if network.config.architecture not in SHIPPED_OF:
        raise ValueError(f"{options.weights} holds a {network.config.architecture!r} network: shipped are "
                         f"{', '.join(SHIPPED_OF)}")
    name, shipped = SHIPPED_OF[network.config.architecture]
    output: Path = options.output or shipped
    network.card = make_card(options.data, options.records, options.note, name)
    save_weights(network, output)
    record_checksum(output)
    export_onnx(network, output.parent, checkpoint_sha256=file_sha256(output), weights=output.name)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

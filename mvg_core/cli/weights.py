"""`mvg info`, and the commands that convert and export weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from mvg_core.cli.application import app
from mvg_core.cli.terminal import SHIPPED_WEIGHTS, Command, Debug, Overwrite, Weights, need_torch, show_line


@app.command(cls=Command)
def info(
    weights: Weights = SHIPPED_WEIGHTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what is installed, and what the weights are: network, licence, training data, numbers, checksum."""
    import json

    from mvg_core.report import package_versions

    facts: dict[str, Any] = {"versions": package_versions()}
    try:
        facts |= _weights_facts(weights)
    except RuntimeError as error:  # no weights, or damaged ones: all the more reason to say the rest
        facts["problem"] = str(error)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(_outline(facts)))
    if "problem" in facts:
        raise typer.Exit(2)


@app.command(cls=Command)
def convert_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Checkpoint of a Painter, SegGPT or MAE network.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Weight file to write, .pt.")],
    preset: Annotated[str, typer.Option(metavar="NAME", help="Network that takes the weights.")] = "mvg_vit_large",
    allow_missing: Annotated[bool, typer.Option(
        "--allow-missing", help="Write also if parameters keep initial values, as a start for training.")] = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint of another project into a weight file, and say what became of every name in it."""
    from mvg_core.report import check_outputs
    from mvg_core.weights import file_sha256

    check_outputs([(output, (".pt",))], inputs=[source], overwrite=overwrite)
    need_torch("converting checkpoints")
    from mvg_core.network import preset as network_preset
    from mvg_core.network.checkpoint import save_weights
    from mvg_core.network.convert import convert_checkpoint as convert

    network, conversion = convert(source, network_preset(preset))
    show_line(str(conversion))
    if not conversion.is_complete and not allow_missing:
        raise ValueError(f"{source} lacks {len(conversion.missing)} of the network's parameters, so nothing was "
                         "written: choose another --preset, or pass --allow-missing to start a training from it")
    network.card = {"converted_from": source.name, "source_sha256": file_sha256(source),
                    "missing": list(conversion.missing), "licence": "as the source"}
    save_weights(network, output)
    show_line(f"weights: {output}")


@app.command(cls=Command)
def export_onnx(
    weights: Weights = SHIPPED_WEIGHTS,
    output: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="Where the files go; without it where mvg looks for them.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write the network as ONNX files, for machines without PyTorch; with its reader, if that lies beside it."""
    from mvg_core.backends import ONNX_MAPS, ONNX_PROMPT, ONNX_QUERY
    from mvg_core.reader_backends import ONNX_OUTLINES, ONNX_TERMS
    from mvg_core.report import check_outputs
    from mvg_core.weights import file_sha256, find_weights, user_folder

    folder = output or user_folder() / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    check_outputs([(folder / name, (".onnx",))
                   for name in (ONNX_PROMPT, ONNX_QUERY, ONNX_MAPS, ONNX_TERMS, ONNX_OUTLINES)], overwrite=overwrite)
    path = find_weights(weights)
    need_torch("export")
    if importlib.util.find_spec("onnx") is None:
        raise RuntimeError("export needs the package onnx: pip install onnx")
    from mvg_core.network.export import export_onnx as export

    for source, network in _networks(path):
        beside = source.name if source.parent.resolve() == folder.resolve() else ""
        for written in export(network, folder, checkpoint_sha256=file_sha256(source), weights=beside):
            show_line(f"written: {written}")


@app.command(cls=Command)
def export_safetensors(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A file ending in .safetensors.")],
    weights: Weights = SHIPPED_WEIGHTS,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write the weights in a format that cannot hold code; mvg reads it too. Their reader goes beside them."""
    from mvg_core.reader_backends import reader_path
    from mvg_core.report import check_outputs
    from mvg_core.weights import find_weights

    outputs = [output, reader_path(output)]
    check_outputs([(one, (".safetensors",)) for one in outputs], overwrite=overwrite)
    path = find_weights(weights)
    need_torch("export")
    if importlib.util.find_spec("safetensors") is None:
        raise RuntimeError("export needs the package safetensors: pip install safetensors")
    from mvg_core.network.checkpoint import save_weights

    for (_, network), written in zip(_networks(path), outputs, strict=False):  # there may be no reader
        save_weights(network, written)
        show_line(f"written: {written}")


def _networks(weights: Path) -> list[tuple[Path, Any]]:
    """The network of a weight file and, if it lies beside it, its reader: each with its file.

    Raises:
        WeightsError, CheckpointError: one is damaged, or of another kind.
    """
    from mvg_core.network.checkpoint import load_network
    from mvg_core.reader_backends import reader_beside, reader_network

    found = [(weights, load_network(weights))]
    beside = reader_beside(weights)
    return found if beside is None else [*found, (beside, reader_network(beside))]


def _weights_facts(name_or_path: str) -> dict[str, Any]:
    """File, checksum, card and, where PyTorch can read them, network and number of parameters.

    Raises:
        WeightsError, CheckpointError, MissingBackendError: no such file, a damaged one, or nothing that can read it.
    """
    from mvg_core.backends import load_backend
    from mvg_core.reader_backends import reader_beside
    from mvg_core.weights import file_sha256, find_weights, read_numbers

    path = find_weights(name_or_path)
    beside = reader_beside(path)
    facts: dict[str, Any] = {"weights": {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path),
                                         "reader_sha256": "" if beside is None else file_sha256(beside)},
                             "numbers": read_numbers(path)}
    if importlib.util.find_spec("torch") is None:
        return facts | {"card": load_backend(path).card}
    described, *reader = (
        {"network": network.config.to_json(),
         "parameters": sum(parameter.numel() for parameter in network.parameters()), "card": network.card}
        for _, network in _networks(path))
    return facts | described | ({"reader": reader[0]} if reader else {})


def _outline(value: Any, indent: int = 0) -> list[str]:
    """Nested facts as indented lines."""
    pad = "  " * indent
    lines: list[str] = []
    for key, part in value.items():
        if isinstance(part, dict):
            lines += [f"{pad}{key}:", *(_outline(part, indent + 1) or [f"{pad}  (nothing recorded)"])]
        elif isinstance(part, list) and any(isinstance(one, (dict, str)) for one in part):
            lines.append(f"{pad}{key}:")
            for one in part:
                inner = _outline(one, indent + 2) if isinstance(one, dict) else [f"{pad}    {one}"]
                lines += [f"{pad}  - {inner[0].strip()}", *inner[1:]]
        else:
            lines.append(f"{pad}{key}: {part}")
    return lines

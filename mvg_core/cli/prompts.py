"""`mvg prompts`: the reference cases that a MONAI bundle works with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mvg_core.cli.application import app
from mvg_core.cli.predict import TaskName, slice_numbers
from mvg_core.cli.terminal import Command, Debug, Overwrite, show_line, spoken_warnings

prompts = typer.Typer(name="prompts", no_args_is_help=True, help="Look after the reference cases of a MONAI bundle.")
app.add_typer(prompts)

Folder = Annotated[Path | None, typer.Option(
    metavar="FOLDER", help="Of the reference cases; without it prompts/ of the bundle here.", show_default=False)]


@prompts.command(cls=Command)
def add(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image: NIfTI, NRRD, MHA, DICOM, PNG, JPEG.")],
    label: Annotated[Path, typer.Argument(
        metavar="LABEL", help="Its answer: label map (0 where nothing is marked), or what the image should become.")],
    name: Annotated[str | None, typer.Option(
        help="What the case is called; without it the name of IMAGE.", show_default=False)] = None,
    folder: Folder = None,
    labels: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Names of labels: JSON or YAML {number: name}, or a 3D Slicer color table.")] = None,
    task: Annotated[TaskName, typer.Option(help="What the pair shows.")] = TaskName.segmentation,
    slices: Annotated[str | None, typer.Option(
        metavar="N,N,..", help="Slices that are solved, from 0; without it those with any label.")] = None,
    hole: Annotated[Path | None, typer.Option(
        metavar="MASK", help="Inpainting: non-zero where IMAGE is to be shown without its voxels.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Copy a solved example into the folder; voxels and grid only, nothing else of its headers."""
    from mvg_core.bundle.prompts_folder import add_case
    from mvg_core.report import read_names

    names = None if labels is None else read_names(labels)[0]
    solved = slice_numbers(slices, "--slices")
    with spoken_warnings():
        case = add_case(chosen_folder(folder), image, label, name=_stem(image) if name is None else name,
                        task=task.value, labels=names, slices=solved, hole=hole, overwrite=overwrite)
    show_line(f"added: {case.name} ({case.task}), {case.image.parent}")


@prompts.command("list", cls=Command)
def list_cases(folder: Folder = None, debug: Debug = False) -> None:
    """Show the cases."""
    from mvg_core.bundle.prompts_folder import read_cases

    place = chosen_folder(folder)
    cases = read_cases(place)
    if not cases:
        show_line(f"{place} has no reference case: mvg prompts add IMAGE LABEL")
        return
    table = Table("name", "task", "labels", "slices", box=None, pad_edge=False)
    for case in cases:
        table.add_row(case.name, case.task, ", ".join(f"{number} {name}" for number, name in case.labels.items()),
                      "" if case.slices is None else ",".join(map(str, case.slices)))
    Console().print(table)


@prompts.command(cls=Command)
def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="Of the case.")], folder: Folder = None,
           debug: Debug = False) -> None:
    """Delete a case."""
    from mvg_core.bundle.prompts_folder import remove_case

    place = chosen_folder(folder)
    remove_case(place, name)
    show_line(f"removed: {name}, {place}")


@prompts.command("demo", cls=Command)
def add_demo(folder: Folder = None, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """Add a case without own data: the MNI152 brain template that nilearn ships, one slice of it labelled."""
    from mvg_core.bundle.prompts_folder import add_case
    from mvg_core.demo import LABELS, load_template, one_slice, reference_slice

    place = chosen_folder(folder)
    template = load_template()
    reference = one_slice(template, reference_slice(template.truth.array))
    case = add_case(place, reference.image, reference.label, name="mni152", labels=LABELS, overwrite=overwrite)
    show_line(f"added: {case.name} ({case.task}), {case.image.parent}")
    show_line("its other slices, in the folder of the bundle: python -m monai.bundle run --config_file "
              f"configs/inference.json --datalist {case.image.resolve()}")


def chosen_folder(folder: Path | None) -> Path:
    """The folder that was asked for, or prompts/ of the bundle in this folder, below it, or of the checkout.

    Raises:
        FileNotFoundError: none was asked for, and there is no bundle.
    """
    if folder is not None:
        return folder
    here = Path.cwd()
    for bundle in (here, here / "bundle", Path(__file__).resolve().parents[2] / "bundle"):
        if (bundle / "configs" / "inference.json").is_file():
            return bundle / "prompts"
    raise FileNotFoundError("there is no MONAI bundle here (configs/inference.json, or the same in bundle/): go to its "
                            "folder, or name the folder of reference cases with --folder")


def _stem(path: Path) -> str:
    name = path.resolve().name
    for suffix in (".nii.gz", ".seg.nrrd", path.suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            return name[: -len(suffix)]
    return name

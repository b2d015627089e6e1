"""What requests and answers hold; FastAPI checks them and describes them in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mvg_core.engine.config import PresetName
from mvg_core.tasks import TaskKind


def _whole(value: Any) -> Any:
    """JSON knows no integers: 5.0 is one too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Sha = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of a volume, see the protocol")]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Name = Annotated[str, Field(max_length=200)]
LabelNumber = Annotated[str, Field(pattern="^([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])$")]
SliceNumber = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ReferenceModel(_Strict):
    """A solved example.

    Where `image` is the query, the slices that are solved are the example for the others.
    """

    image: Sha
    label: Sha = Field(description="SHA-256 of its label map, or of the image that the answer should look like")
    name: Name = ""
    slices: Annotated[list[SliceNumber], Field(max_length=2**16)] | None = Field(
        None, description="slices that are solved, along the axis of the plane; null: those with any label")
    hole: Sha | None = Field(None, description="inpainting: where the reference's image is missing")


class _Work(_Strict):
    task: TaskKind
    references: Annotated[list[ReferenceModel], Field(min_length=1, max_length=64)]
    labels: Annotated[dict[LabelNumber, Name], Field(max_length=255)] = Field(
        default_factory=dict, description="segmentation: names of label numbers; empty: the labels that are shown",
        json_schema_extra={"additionalProperties": False})
    plane: Literal["auto", "axial", "coronal", "sagittal", 0, 1, 2] = Field(
        "auto", description="how to slice: a plane of the body, or an index axis of the query")
    hole: Sha | None = Field(None, description="inpainting: label map on the query's grid, not 0 where to paint")
    window: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = Field(
        None, description="intensities shown as black and white; null chooses")
    preset: PresetName = "fast"
    parts: Annotated[dict[str, bool | int | Number | str], Field(max_length=32)] = Field(
        default_factory=dict, description="changed parts of the preset, see capabilities")


class WorkModel(_Work):
    """What to do with a query."""

    query: Sha


class JobModel(WorkModel):
    """A volume, or some of its slices, to be solved."""

    slices: Annotated[list[SliceNumber], Field(min_length=2, max_length=2)] | None = Field(
        None, description="first and last slice; null: all")


class PreviewModel(WorkModel):
    """One slice to be solved now."""

    slice: SliceNumber


class EncodeModel(_Work):
    """What previews will be asked for."""

    query: Sha | None = Field(None, description="null: the references are only checked")
    slice: SliceNumber | None = Field(None, description="where the first preview will be; null: the middle")


class ErrorDetail(BaseModel):
    """Why not."""

    code: str
    message: str


class ErrorModel(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class HealthModel(BaseModel):
    """Whether it lives."""

    status: Literal["ok"]
    protocol: int
    version: str
    busy: bool


class VolumeModel(BaseModel):
    """A volume that is held."""

    id: str
    bytes: int


class EncodedModel(BaseModel):
    """What was prepared."""

    seconds: float
    axis: int | None
    warnings: list[str]


class JobCreated(BaseModel):
    """A job that was queued."""

    id: str


class JobStatusModel(BaseModel):
    """How far a job is."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int
    total: int
    seconds: float
    error: str | None
    painted: int
    ahead: int
    axis: int | None
    has_result: bool

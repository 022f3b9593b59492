"""The protocol's documents. Questions are checked by these; answers only described in OpenAPI."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.policy import MembersMode

Scalar = str | bool | int | float
MOST_FIELDS = 16


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True)


class _Known(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _first_of_many(cls, value: object) -> object:
        """Of more than `MOST_FIELDS` one is not known; to name all that are not takes long."""
        return dict(islice(value.items(), MOST_FIELDS)) if isinstance(value, dict) else value


class Parameters(_Known):
    """Options of one request."""

    policy: str | None = Field(None, description="Name of the policy that decides.")
    alpha: float | None = Field(
        None, gt=0, lt=1, description="False-alarm rate of the OOD flag, in place of the policy's."
    )
    members: MembersMode | None = Field(
        None, description="How many members an image is shown to, in place of the policy's."
    )
    background: bool = Field(False, description="Let the images of others go first.")
    timeout: int = Field(
        0, ge=0, description="Microseconds to answer in, at most the service's own; 0 is those."
    )
    binary_data_output: bool = Field(
        False, description="Answer in bytes, where an output does not say otherwise."
    )


class InputParameters(_Asked):
    """How an input is sent."""

    binary_data_size: int | None = Field(
        None, ge=0, description="Bytes of this tensor after the JSON, in place of `data`."
    )


class InputTensor(_Asked):
    """Images: pixels [B, h, w] or [B, h, w, 1 or 3], or B encoded files."""

    name: str
    datatype: Literal["UINT8", "FP32", "BYTES"] = Field(
        description="UINT8: pixels. FP32: pixels from 0 to 1. BYTES: PNG, JPEG, WebP or BMP files."
    )
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=4)
    parameters: InputParameters = InputParameters()
    data: Any = Field(
        None, description="Flat, or nested as the shape is; files are strings in base64."
    )


class OutputParameters(_Known):
    """How an output is to be sent."""

    binary_data: bool | None = Field(None, description="In bytes, after the JSON.")


class RequestedOutput(_Asked):
    """One output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Asked):
    """One inference request."""

    id: str | None = Field(None, description="Repeated in the answer.")
    parameters: Parameters = Parameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=32, description="All of them if left out."
    )


class OutputTensor(BaseModel):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Scalar] | None = Field(
        None, description="`binary_data_size`, if the data follow the JSON."
    )
    data: list[Scalar] | None = Field(None, description="Flat, row by row.")


class InferResponse(BaseModel):
    """The answer to one inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Scalar]
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor: −1 stands for a length that varies."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class ModelReady(BaseModel):
    """Whether a model can be asked."""

    name: str
    ready: bool

"""The network behind one small interface, so that the rest of inference is plain NumPy.

Shape letters: B slices, S prompts, H W pixels (multiples of 16).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from mvg_core.precision import Precision, checked_precision, torch_precision
from mvg_core.reader_backends import ONNX_OUTLINES, ONNX_TERMS, OnnxReader, Reader, load_reader, reader_beside
from mvg_core.readout import Prior
from mvg_core.weights import WeightsError, check_checksum, checksum_record, file_sha256, find_weights, onnx_folders

BackendChoice = Literal["auto", "torch", "onnx"]
Encoded = Any
"""What a backend knows of prompts; only the backend that made it can read it."""

PIXEL_MULTIPLE = 16
ONNX_PROMPT, ONNX_QUERY, ONNX_MAPS = "model_prompt.onnx", "model_query.onnx", "model_maps.onnx"
"""The parts of an exported network: encoding a prompt, painting queries, and making feature maps, if it does."""
ONNX_METADATA = ("mvg_network", "mvg_card", "mvg_checkpoint_sha256", "mvg_weights_file")
"""Keys in all files: configuration (JSON), card (JSON), checksum of the weight file they were made from, and its name,
empty unless they read its numbers."""

N_CODEBOOKS = 4
"""Encoded prompts end with this many codebooks and summaries, which add up; all before are tokens along axis 2."""
ONNX_SUM = "sum"
"""How the names of those begin in ONNX files, so that files of other networks can be read."""


class MissingBackendError(RuntimeError):
    """No package that can run the network is installed."""


class Backend(Protocol):
    """Runs the network.

    Attributes:
        name: for reports.
        size: native side of a slice in pixels.
        checkpoint_sha256: of the weight file; empty if there is none.
        card: what is known of the weights: licence, training data, numbers.
    """

    name: str
    size: int
    checkpoint_sha256: str
    card: dict[str, Any]

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Encoded:
        """Encode one prompt, image (H, W) and painted label (H, W, 3) in [0, 1]."""
        ...

    def merge(self, encoded: Sequence[Encoded], weights: Sequence[float] | None = None) -> Encoded:
        """What several encoded prompts say together; `weights` (above 0) say how much each counts."""
        ...

    def paint(self, queries: npt.NDArray[np.float32], encoded: Encoded) -> npt.NDArray[np.float32]:
        """Paint the labels of queries (B, H, W) in [0, 1] -> float32 (B, H, W, 3), nominally in [0, 1]."""
        ...


def reader_of(backend: Backend) -> Reader | None:
    """What reads label maps beside a backend; None if its weights come without."""
    return getattr(backend, "reader", None)


def reader_sha256(backend: Backend) -> str:
    """Of the weight file of what reads label maps beside a backend; empty if its weights come without."""
    reader = reader_of(backend)
    return "" if reader is None else reader.checkpoint_sha256


def weights_sha256(backend: Backend) -> str:
    """One checksum of all weights that answer: of the network's alone, or of its and its reader's together."""
    return together(backend.checkpoint_sha256, reader_sha256(backend))


def together(network_sha256: str, reader_sha256: str) -> str:
    """One checksum for those of two weight files, of which the second may be missing (empty)."""
    if not reader_sha256:
        return network_sha256
    return hashlib.sha256(f"{network_sha256}+{reader_sha256}".encode()).hexdigest()


class MapBackend(Backend, Protocol):
    """One whose network may make feature maps, too."""

    @property
    def prior(self) -> Prior | None:
        """Of the readout of feature maps; None where the network makes none."""
        ...

    def maps(self, images: npt.NDArray[np.float32], holes: npt.NDArray[np.bool_] | None = None
             ) -> npt.NDArray[np.float32]:
        """Feature maps (B, K, H, W) of images (B, H, W) in [0, 1], filled in `holes`; only where there is a `prior`."""
        ...


class TorchBackend:
    """The network in PyTorch.

    Args:
        network: a `CompactPainter`.
        device: torch device; `auto` takes a GPU if there is one.
        checkpoint_sha256: of its weight file.
        precision: see `Precision`; the weights stay in single precision.
        reader: reads label maps beside it, if its weights come with one; on the same device.

    Attributes:
        precision: in which it computes, `fp32` or `bf16`.

    Raises:
        ValueError: the device cannot be used, or not in this precision.
    """

    name = "torch"

    def __init__(self, network: Any, device: str = "auto", checkpoint_sha256: str = "",
                 precision: Precision = "fp32", reader: Reader | None = None) -> None:
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            # Convolutions are fastest with channels last, on CPUs too.
            self._network = network.eval().to(self.device, memory_format=torch.channels_last)
        except (RuntimeError, AssertionError) as error:
            raise _unusable(device, str(error).splitlines()[0]) from error
        self.precision: Precision = torch_precision(precision, self.device)
        self.size = int(network.config.size)
        self.card: dict[str, Any] = dict(network.card)
        self.checkpoint_sha256, self.reader = checkpoint_sha256, reader

    @property
    def network(self) -> Any:
        """The network itself; whoever changes its weights changes the backend."""
        return self._network

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Encoded:
        """Encode one prompt."""
        import torch

        _check_side(image.shape)
        with torch.inference_mode(), self._autocast():
            images = self._tensor(image)[None, None, None]
            labels = self._tensor(np.moveaxis(label, -1, 0))[None, None]
            return self._network.encode(images, labels)

    def merge(self, encoded: Sequence[Encoded], weights: Sequence[float] | None = None) -> Encoded:
        """Join tokens, add codebooks; weights apply to codebooks."""
        import torch

        with torch.inference_mode():
            return _merged(encoded, N_CODEBOOKS, weights, lambda parts: torch.cat(parts, dim=2))

    def paint(self, queries: npt.NDArray[np.float32], encoded: Encoded) -> npt.NDArray[np.float32]:
        """Paint the labels of queries."""
        import torch

        _check_side(queries.shape)
        with torch.inference_mode(), self._autocast():
            painted = self._network.paint(self._tensor(queries)[:, None], encoded)
        return painted.permute(0, 2, 3, 1).float().cpu().numpy()

    @property
    def prior(self) -> Prior | None:
        """See `MapBackend`."""
        maps = getattr(self._network, "maps", None)
        if maps is None:
            return None
        weights, shrinkage = (number.detach().double().cpu().numpy() for number in (maps.prior, maps.log_shrinkage))
        return Prior(weights, np.exp(shrinkage))

    def maps(self, images: npt.NDArray[np.float32], holes: npt.NDArray[np.bool_] | None = None
             ) -> npt.NDArray[np.float32]:
        """Feature maps of images."""
        import torch

        _check_side(images.shape)
        missing = _float32(np.zeros(images.shape) if holes is None else holes)
        with torch.inference_mode(), self._autocast():
            maps = self._network.maps(self._tensor(images)[:, None], self._tensor(missing)[:, None])
        return maps.float().cpu().numpy()

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _tensor(self, array: npt.NDArray[np.float32]) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)


class OnnxBackend:
    """The network in ONNX Runtime, from the files that `mvg export-onnx` writes.

    Args:
        folder: holds the files and the records of their checksums.
        device: `auto`, `cpu` or `cuda`; `auto` takes a GPU if this build of ONNX Runtime can use one.
        threads: most CPU threads; None leaves the choice to ONNX Runtime.

    Raises:
        WeightsError: a file is missing or damaged, or they do not belong together.
        ValueError: the device cannot be used.
    """

    name = "onnxruntime"
    precision: Precision = "fp32"

    def __init__(self, folder: Path, device: str = "auto", threads: int | None = None) -> None:
        providers = _onnx_providers(device)
        self._prompt = _onnx_session(folder / ONNX_PROMPT, providers, threads)
        self._query = _onnx_session(folder / ONNX_QUERY, providers, threads)
        written = self._prompt.get_modelmeta().custom_metadata_map
        if not set(ONNX_METADATA) <= set(written):
            raise WeightsError(f"{ONNX_PROMPT} in {folder} is not ours: run `mvg export-onnx` again")
        network, card, self.checkpoint_sha256, weights = (written[key] for key in ONNX_METADATA)
        makes_maps = json.loads(network).get("maps", 0) > 0
        self._maps = _onnx_session(folder / ONNX_MAPS, providers, threads) if makes_maps else None
        for name, session in ((ONNX_QUERY, self._query), (ONNX_MAPS, self._maps)):
            if session is not None and session.get_modelmeta().custom_metadata_map != written:
                raise WeightsError(f"{ONNX_PROMPT} and {name} in {folder} do not belong together, or are not ours: run "
                                   "`mvg export-onnx` again")
        if weights and file_sha256(folder / Path(weights).name) != self.checkpoint_sha256:
            raise WeightsError(f"{ONNX_PROMPT} and {ONNX_QUERY} in {folder} were made from another {weights} than the "
                               "one beside them: run `mvg export-onnx` again")
        self.prior = None if self._maps is None else self._prior(self._maps)
        self.reader: Reader | None = None
        self.size = int(json.loads(network)["size"])
        self.card: dict[str, Any] = json.loads(card)
        self._names = [output.name for output in self._prompt.get_outputs()]

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Encoded:
        """Encode one prompt."""
        _check_side(image.shape)
        return self._prompt.run(self._names, {"image": _float32(image)[None, None, None],
                                              "label": _float32(np.moveaxis(label, -1, 0))[None, None]})

    def merge(self, encoded: Sequence[Encoded], weights: Sequence[float] | None = None) -> Encoded:
        """Join tokens, add codebooks; weights apply to codebooks."""
        n_sums = sum(name.startswith(ONNX_SUM) for name in self._names)
        return _merged(encoded, n_sums, weights, lambda parts: np.concatenate(parts, axis=2))

    def paint(self, queries: npt.NDArray[np.float32], encoded: Encoded) -> npt.NDArray[np.float32]:
        """Paint the labels of queries."""
        _check_side(queries.shape)
        known = dict(zip(self._names, encoded, strict=True))
        # One by one: no slower, and its attention needs hundreds of MB for every slice of 512 x 512 pixels.
        painted = [self._query.run(None, {"image": _float32(query)[None, None], **known})[0] for query in queries]
        return np.moveaxis(np.concatenate(painted), 1, -1)

    def maps(self, images: npt.NDArray[np.float32], holes: npt.NDArray[np.bool_] | None = None
             ) -> npt.NDArray[np.float32]:
        """Feature maps of images."""
        assert self._maps is not None  # whoever asks saw that there is a prior
        _check_side(images.shape)
        missing = np.zeros(images.shape, np.float32) if holes is None else holes
        return np.concatenate([self._maps.run(["maps"], {"image": _float32(image)[None, None],
                                                         "hole": _float32(hole)[None, None]})[0]
                               for image, hole in zip(images, missing, strict=True)])

    def _prior(self, session: Any) -> Prior:
        """Of the readout; the graph gives it beside the maps."""
        nothing = np.zeros((1, 1, PIXEL_MULTIPLE, PIXEL_MULTIPLE), np.float32)
        weights, shrinkage = session.run(["prior", "log_shrinkage"], {"image": nothing, "hole": nothing})
        return Prior(weights.astype(np.float64), np.exp(shrinkage.astype(np.float64)))


def load_backend(name_or_path: str | os.PathLike[str] = "mvg_compact", *, backend: BackendChoice = "auto",
                 device: str = "auto", threads: int | None = None, precision: Precision = "auto") -> MapBackend:
    """The backend for a weight file.

    Args:
        name_or_path: see `find_weights`.
        backend: `torch`, `onnx` (files that `mvg export-onnx` made from these weights, see `onnx_folders`), or `auto`:
            PyTorch if it is installed.
        device: `auto`, `cpu`, `cuda`, ...
        threads: most CPU threads; None leaves the choice to the package.
        precision: `fp32`, `bf16` (PyTorch only), or `auto`: bfloat16 where the processor is faster with it.

    Raises:
        MissingBackendError: the package is not installed, or neither of them.
        WeightsError, CheckpointError: the weights are missing, damaged or of another kind.
        ValueError: unknown backend or precision, or a device that cannot be used.
    """
    backend, precision = _available(backend), checked_precision(precision)
    if backend == "onnx" and precision == "bf16":
        raise ValueError("precision 'bf16' needs PyTorch: use 'auto' or 'fp32' with ONNX Runtime, or the backend "
                         "'torch'")
    path = find_weights(name_or_path)
    return _load_torch(path, device, threads, precision) if backend == "torch" else _load_onnx(path, device, threads)


def _load_torch(path: Path, device: str, threads: int | None, precision: Precision) -> TorchBackend:
    import torch

    from mvg_core.network.checkpoint import load_network
    from mvg_core.network.errors import CheckpointError

    if threads is not None:
        torch.set_num_threads(threads)
    network = load_network(path)
    if network.config.architecture != "compact":
        raise CheckpointError(f"{path} holds a {network.config.architecture!r} network: prediction needs a 'compact' "
                              "one, which encodes prompts on their own")
    backend = TorchBackend(network, device, file_sha256(path), precision)
    beside = reader_beside(path)
    if beside is not None:
        backend.reader = load_reader(beside, backend.device, backend.precision)
    return backend


def _load_onnx(path: Path, device: str, threads: int | None) -> OnnxBackend:
    folders = onnx_folders(path)
    found = [folder for folder in folders if (folder / ONNX_PROMPT).is_file() and (folder / ONNX_QUERY).is_file()]
    if not found:
        raise WeightsError(f"{ONNX_PROMPT} and {ONNX_QUERY} are in none of {', '.join(map(str, folders))}: run "
                           "`mvg export-onnx` (where PyTorch is installed)")
    expected = file_sha256(path)
    for folder in found:
        backend = OnnxBackend(folder, device, threads)
        if backend.checkpoint_sha256 == expected:
            beside = reader_beside(path)
            backend.reader = None if beside is None else onnx_reader(folder, beside, device, threads)
            return backend
    raise WeightsError(f"the ONNX files in {', '.join(map(str, found))} were made from other weights than {path}: run "
                       "`mvg export-onnx` again")


def onnx_reader(folder: Path, weights: Path, device: str, threads: int | None) -> OnnxReader:
    """The reader in ONNX Runtime, whose files must have been made from its weight file.

    Args:
        folder: holds the files and the records of their checksums.
        weights: the weight file.
        device: see `OnnxBackend`.
        threads: see `OnnxBackend`.

    Raises:
        WeightsError: a file is missing, damaged, or made from other weights.
    """
    check_checksum(weights)
    expected, providers = file_sha256(weights), _onnx_providers(device)
    terms, outlines = (_onnx_session(folder / name, providers, threads) for name in (ONNX_TERMS, ONNX_OUTLINES))
    for name, session in ((ONNX_TERMS, terms), (ONNX_OUTLINES, outlines)):
        if session.get_modelmeta().custom_metadata_map.get("mvg_checkpoint_sha256") != expected:
            raise WeightsError(f"{name} in {folder} was made from other weights than {weights}: run `mvg export-onnx` "
                               "again")
    source = terms.get_modelmeta().custom_metadata_map[ONNX_METADATA[-1]]
    # Numbers are read from the file beside them, wherever the weights were found.
    if source and file_sha256(folder / Path(source).name) != expected:
        raise WeightsError(f"{ONNX_TERMS} and {ONNX_OUTLINES} in {folder} were made from another {source} than the one "
                           "beside them: run `mvg export-onnx` again")
    return OnnxReader(terms, outlines, expected)


def _available(backend: BackendChoice) -> Literal["torch", "onnx"]:
    """The backend that is meant, if its package is installed."""
    if backend not in get_args(BackendChoice):
        raise ValueError(f"backend {backend!r} is unknown: use one of {', '.join(get_args(BackendChoice))}")
    if backend != "onnx" and _is_installed("torch"):
        return "torch"
    if backend != "torch" and _is_installed("onnxruntime"):
        return "onnx"
    missing = {"auto": "neither PyTorch nor ONNX Runtime is", "torch": "PyTorch is not", "onnx": "ONNX Runtime is not"}
    extra = "onnx" if backend == "onnx" else "torch"
    raise MissingBackendError(f"{missing[backend]} installed, so the network cannot be run: pip install "
                              f"'mvg-core[{extra}]' (in a checkout: pip install '.[{extra}]')")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # something that pretends to be the package, or forbids it
        return False


def _onnx_providers(device: str) -> list[str]:
    import onnxruntime

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    has_cuda = cuda in onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and not has_cuda):
        return [cpu]
    if device not in ("auto", "cuda"):
        raise _unusable(device, "ONNX Runtime is used with 'cpu' and 'cuda' only")
    if not has_cuda:
        raise _unusable(device, "this build of ONNX Runtime has no CUDA")
    return [cuda, cpu]


def _onnx_session(path: Path, providers: list[str], threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not path.is_file():
        raise WeightsError(f"{path} is missing: run `mvg export-onnx` (where PyTorch is installed)")
    if not checksum_record(path).is_file():
        raise WeightsError(f"{checksum_record(path)} is missing, so {path.name} cannot be checked: copy it too, or run "
                           "`mvg export-onnx` again")
    check_checksum(path, "Run `mvg export-onnx` again (where PyTorch is installed), or install the package again")
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its errors have no common class
        raise WeightsError(f"{path} cannot be loaded ({str(error).splitlines()[0]}): run `mvg export-onnx` again"
                           ) from error


def _merged(encoded: Sequence[Encoded], n_sums: int, weights: Sequence[float] | None, join: Callable[[tuple], Any]
            ) -> Encoded:
    """Several encoded prompts as one: tokens joined, the last `n_sums` tensors added up."""
    if len(encoded) == 1:
        return encoded[0]
    parts = list(zip(*encoded, strict=True))
    if weights is not None:
        parts[-n_sums:] = [tuple(one * weight for one, weight in zip(each, weights, strict=True))
                           for each in parts[-n_sums:]]
    return [join(each) for each in parts[:-n_sums]] + [sum(each[1:], each[0]) for each in parts[-n_sums:]]


def _check_side(shape: tuple[int, ...]) -> None:
    if any(side % PIXEL_MULTIPLE for side in shape[-2:]):
        raise ValueError(f"slices of {shape[-2]} x {shape[-1]} pixels do not fit the network: both sides must be "
                         f"multiples of {PIXEL_MULTIPLE}")


def _float32(array: npt.NDArray) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def _unusable(device: str, reason: str) -> ValueError:
    return ValueError(f"device {device!r} cannot be used ({reason}): use 'auto' or 'cpu'")

"""A frozen encoder's features of every picture, computed once and read back through a memory map.

    <root>/<digest of the key>/
        key.json       all that the content depends on, and the shape of a row
        error.json     the rounding error, measured
        features.bin   rows of (P, Dv), appended
        scales.bin     int8 only: rows of (P, groups) fp32
        index.bin      32 bytes a row: the digest of the picture's bytes; written after its row is on the disk

A row counts once its digest stands in index.bin, so a kill at any instant loses only rows that were not yet
counted; the next start cuts them off and goes on. Pictures are known by their bytes: the same one under two names
is encoded once, and a data set that has grown only adds rows. A changed key is another folder, never a stale one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image

from limner.data.images import ImageSource, PixelSettings, image_bytes
from limner.data.loading import load_pictures, settle_failures
from limner.data.records import Record
from limner.data.sizes import SPARE, Progress, free_bytes, size
from limner.whole_files import write_whole

try:
    import fcntl
except ImportError:  # no flock on this system: two processes that fill one cache are then not kept apart
    fcntl = None  # type: ignore[assignment]

StoredType = Literal["fp32", "fp16", "int8"]
Encode = Callable[[torch.Tensor], torch.Tensor]
"""pixels (B, 3, H, W) float32 on the CPU -> features (B, P, Dv) of any float type, on any device."""

_FORMAT = 1
_DIGEST = 32
_FLUSH_SECONDS = 5.0
_GROUP = 64  # channels that share a scale in int8: a few channels of a trained encoder are 100 times the others


def image_digest(source: ImageSource) -> bytes:
    """32 bytes that stand for a picture: of its file's bytes, or of its pixels where it has no file."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    if isinstance(source, Image.Image | np.ndarray):
        array = np.asarray(source)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    else:
        digest.update(image_bytes(source))
    return digest.digest()


def weights_digest(module: torch.nn.Module) -> str:
    """Stands for a module's weights, whatever they were loaded from: part of a cache's key."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class CachePlan:
    """What filling a cache would take. ``rows`` is complete after `FeatureCache.fill`."""

    digests: list[bytes]
    """Of every record's picture; empty bytes where it could not be read."""
    failures: dict[int, str]
    """Records whose bytes could not be read, with the reason."""
    new: list[int]
    """Records to encode: one for each picture that the cache does not have."""
    row_bytes: int
    free_bytes: int
    folder: Path

    @property
    def need_bytes(self) -> int:
        return len(self.new) * self.row_bytes

    @property
    def fits(self) -> bool:
        return not self.new or self.need_bytes + SPARE <= self.free_bytes

    def __str__(self) -> str:
        known = len(self.digests) - len(self.failures) - len(self.new)
        told = f"feature cache: {len(self.new):,} pictures to encode, {known:,} there already or twice; "
        told += f"{size(self.need_bytes)} ({size(self.row_bytes)} a picture) in {self.folder}"
        if self.fits:
            return f"{told}, {size(self.free_bytes)} free"
        return f"{told}, but only {size(self.free_bytes)} are free there (and {size(SPARE)} stay free)"


class FeatureCache:
    """Features by picture.

    Args:
        root: the folder of all caches, e.g. ``cache/features``.
        key: all that the features depend on beside the pixels: encoder, revision, weights, layer, precision.
        settings: the preprocessing; part of the key.
        encode: computes what is missing.
        dtype: how features are kept: fp32 is exact, fp16 half of it, int8 a quarter with a scale for each 64
            channels of a token.
        draft: decode large JPEGs at a fraction of their size; part of the key.

    Raises:
        ValueError: the folder holds another cache (a collision or a damaged key.json).
    """

    def __init__(
        self,
        root: Path,
        key: dict[str, Any],
        settings: PixelSettings,
        encode: Encode,
        dtype: StoredType = "fp16",
        draft: bool = False,
    ) -> None:
        self.settings, self.encode, self.dtype, self.draft = settings, encode, dtype, draft
        pixels = asdict(settings)
        if not settings.bgr:  # only then, so that caches made before stay valid
            del pixels["bgr"]
        whole = {"format": _FORMAT, "dtype": dtype, "draft": draft, "pixels": pixels, **key}
        self.key = json.loads(json.dumps(whole, sort_keys=True))  # as it comes back from the file
        name = hashlib.blake2b(json.dumps(self.key, sort_keys=True).encode(), digest_size=10).hexdigest()
        self.folder = Path(root) / name
        self._maps: tuple[np.ndarray, np.ndarray | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Memory maps stay behind: a worker process opens its own. The encoder stays behind too."""
        return self.__dict__ | {"_maps": None, "encode": None}

    @cached_property
    def row_shape(self) -> tuple[int, int]:
        """(P, Dv), from key.json, or from encoding one black picture."""
        file = self.folder / "key.json"
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["key"] != self.key:
                raise ValueError(f"{self.folder} holds features of something else; remove this folder.")
            return tuple(stored["row_shape"])
        black = self.settings.normalize(torch.zeros((1, *self.settings.size, 3), dtype=torch.uint8))
        with torch.inference_mode():
            _, tokens, width = self.encode(black).shape
        return tokens, width

    @property
    def row_bytes(self) -> int:
        """Bytes on the disk for each picture."""
        tokens, width = self.row_shape
        return tokens * (width * _NUMPY[self.dtype]().itemsize + (4 * self._groups if self.dtype == "int8" else 0))

    @property
    def relative_error(self) -> float:
        """|stored - computed| / |computed|, measured over all rows as they were written; 0 for an empty cache."""
        error, whole = self._measured()
        return (error / whole) ** 0.5 if whole else 0.0

    def plan(self, records: Sequence[Record], progress: Progress | None = None) -> CachePlan:
        """Reads the bytes of all pictures and finds out which must be encoded, and whether the disk has room."""
        digests, failures = _digests(records, progress)
        known = set(self._index())
        new: list[int] = []
        for k, digest in enumerate(digests):
            if digest and digest not in known:
                known.add(digest)
                new.append(k)
        return CachePlan(digests, failures, new, self.row_bytes, free_bytes(self.folder), self.folder)

    def fill(
        self,
        records: Sequence[Record],
        plan: CachePlan,
        batch_size: int = 8,
        workers: int | None = None,
        progress: Progress | None = None,
        skip_bad_images: bool = False,
    ) -> tuple[np.ndarray, list[str]]:
        """Encodes what is missing. May be killed and called again; another process that fills it is waited for.

        Args:
            batch_size: 8 is best on CPUs, where the maps of a convolutional trunk leave the processor's cache at 16
                (MobileNetV2: 8.1 ms a picture, 10.7 at 16, 11.7 at 32); a GPU may want more.

        Returns:
            The row of every record, (N,) int64, -1 where its picture cannot be read; and remarks about those.

        Raises:
            ValueError: the disk has no room (`CachePlan.fits`); a picture cannot be read and ``skip_bad_images`` is
                off; features that fp16 cannot hold.
        """
        if not plan.fits:
            raise ValueError(f"{plan}: free some space, choose another --cache-dir, or pass --cache-features off.")
        failures = dict(plan.failures)
        if plan.new:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "lock"):
                self._recover()
                there = set(self._index())  # another process may have filled it while this one waited
                missing = [k for k in plan.new if plan.digests[k] not in there]
                with _Writer(self) as writer:
                    for done, found in enumerate(self._encoded(records, missing, batch_size, workers)):
                        indices, features, failed = found
                        failures |= failed
                        writer.add([plan.digests[k] for k in indices], features)
                        if progress is not None:
                            seen = min((done + 1) * batch_size, len(missing))
                            progress("encoding pictures", seen, len(missing), "pictures")
        self._maps = None
        row_of = {digest: row for row, digest in enumerate(self._index())}
        rows = np.array([row_of.get(digest, -1) for digest in plan.digests], dtype=np.int64)
        for k in np.flatnonzero(rows < 0).tolist():  # the same damaged picture under another name
            failures.setdefault(k, f"{records[k].image_id} is the same picture as one that cannot be read.")
        return rows, settle_failures(failures, len(records), skip_bad_images)

    def read(self, rows: np.ndarray | Sequence[int]) -> torch.Tensor:
        """(B, P, Dv): fp32 where that is kept, else fp16."""
        if self._maps is None:
            self._maps = self._open_maps()
        features, scales = self._maps
        wanted = np.asarray(rows, dtype=np.int64)
        assert wanted.size == 0 or wanted.min() >= 0, "a record without features was asked for"
        taken = torch.from_numpy(np.asarray(features[wanted]))
        if scales is None:
            return taken
        grouped = taken.float().unflatten(-1, (self._groups, -1))  # (B, P, G, Dv / G)
        return (grouped * torch.from_numpy(np.asarray(scales[wanted]))[..., None]).flatten(-2).half()

    def remove(self) -> None:
        """Deletes this cache from the disk."""
        self._maps = None
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _groups(self) -> int:
        width = self.row_shape[1]
        return width // _GROUP if width % _GROUP == 0 else 1

    def _encoded(
        self, records: Sequence[Record], missing: list[int], batch_size: int, workers: int | None
    ) -> Iterator[tuple[list[int], torch.Tensor, dict[int, str]]]:
        for pictures in load_pictures(records, self.settings, missing, batch_size, workers, self.draft):
            features = torch.empty((0, *self.row_shape))
            if pictures.indices:
                with torch.inference_mode():
                    features = self.encode(self.settings.normalize(pictures.pixels)).float().cpu()
            yield pictures.indices, features, pictures.failures

    def _measured(self) -> tuple[float, float]:
        """The squares of the error and of the features, summed over all rows."""
        file = self.folder / "error.json"
        if not file.exists():
            return 0.0, 0.0
        stored = json.loads(file.read_text())
        return stored["square_error"], stored["square"]

    def _stored(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """(B, P, Dv) fp32 -> what is stored, the scales (B, P, G) of int8, and what `read` will give."""
        scales = None
        if self.dtype == "int8":
            grouped = features.unflatten(-1, (self._groups, -1))
            scales = (grouped.abs().amax(-1) / 127).clamp_min(1e-12)  # (B, P, G)
            stored = (grouped / scales[..., None]).round().to(torch.int8).flatten(-2)
            back = (stored.float().unflatten(-1, (self._groups, -1)) * scales[..., None]).flatten(-2)
        else:
            stored = features.to(torch.float16 if self.dtype == "fp16" else torch.float32)
            back = stored.float()
        if not torch.isfinite(back).all():
            raise ValueError(
                f"The encoder's features reach {features.abs().max():.3g}, which {self.dtype} cannot hold; pass "
                "--cache-features off."
            )
        return stored, scales, back

    def _index(self) -> list[bytes]:
        file = self.folder / "index.bin"
        data = file.read_bytes() if file.exists() else b""
        return [data[k : k + _DIGEST] for k in range(0, len(data) - _DIGEST + 1, _DIGEST)]

    def _recover(self) -> None:
        """Cuts off what a killed process had not counted."""
        files = self._files()
        counts = [file.stat().st_size // row if file.exists() else 0 for file, row in files.items()]
        for file, row in files.items():
            if file.exists():
                os.truncate(file, min(counts) * row)

    def _files(self) -> dict[Path, int]:
        """Every file that grows, with the bytes of a row."""
        tokens, width = self.row_shape
        files = {self.folder / "features.bin": tokens * width * _NUMPY[self.dtype]().itemsize}
        if self.dtype == "int8":
            files[self.folder / "scales.bin"] = tokens * self._groups * 4
        return files | {self.folder / "index.bin": _DIGEST}

    def _open_maps(self) -> tuple[np.ndarray, np.ndarray | None]:
        rows, (tokens, width) = len(self._index()), self.row_shape
        shape = (rows, tokens, width)
        features = np.memmap(self.folder / "features.bin", _NUMPY[self.dtype], "r", shape=shape)
        if self.dtype != "int8":
            return features, None
        groups = (rows, tokens, self._groups)
        return features, np.memmap(self.folder / "scales.bin", np.float32, "r", shape=groups)


_NUMPY: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


class _Writer:
    """Appends rows; counts them, every few seconds and at the end, once they are safely on the disk."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache
        self.pending: list[bytes] = []
        self.last_flush = time.monotonic()

    def __enter__(self) -> _Writer:
        self._write("key.json", {"key": self.cache.key, "row_shape": self.cache.row_shape})
        self.square_error, self.square = self.cache._measured()
        self.files: list[BinaryIO] = [file.open("ab") for file in self.cache._files()]
        return self

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.cache.folder / name, json.dumps(content, indent=1))

    def add(self, digests: list[bytes], features: torch.Tensor) -> None:
        stored, scales, back = self.cache._stored(features)
        self.square_error += float((back - features).square().sum())
        self.square += float(features.square().sum())
        self.files[0].write(stored.contiguous().numpy().data)
        if scales is not None:
            self.files[1].write(scales.contiguous().numpy().data)
        self.pending += digests
        if time.monotonic() - self.last_flush > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        *contents, index = self.files
        for file in contents:
            file.flush()
            os.fsync(file.fileno())
        index.write(b"".join(self.pending))
        index.flush()
        os.fsync(index.fileno())
        self._write("error.json", {"square_error": self.square_error, "square": self.square})
        self.pending = []
        self.last_flush = time.monotonic()

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.flush()
        finally:
            for file in self.files:
                file.close()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digests(records: Sequence[Record], progress: Progress | None) -> tuple[list[bytes], dict[int, str]]:
    failures: dict[int, str] = {}

    def digest(index: int) -> bytes:
        try:
            return image_digest(records[index].image)
        except (ValueError, OSError) as error:
            failures[index] = str(error)
            return b""

    digests = []
    with ThreadPoolExecutor(4) as pool:  # reading and hashing both let go of Python's lock
        for done, found in enumerate(pool.map(digest, range(len(records))), 1):
            digests.append(found)
            if progress is not None and (done % 1000 == 0 or done == len(records)):
                progress("reading pictures", done, len(records), "pictures")
    return digests, failures

"""WebDataset shards: uncompressed .tar files whose pictures are read in place, never unpacked.

A shard's headers are read once (a seek for each member); after that every picture is one seek and one read, so the
order of training can be shuffled and resumed exactly.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from limner.data.caption_files import parse_json
from limner.data.images import EXTENSIONS
from limner.data.manifests import Entry, captions_of

_MARK = "#tar:"


@dataclass(frozen=True)
class TarImage:
    """A member of a shard: a `StoredImage`."""

    shard: str
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.member} in {self.shard}"

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError(f"{self.name} is cut off: the shard has ended; copy the shard again.")
        return data

    @property
    def address(self) -> str:
        """This member as one line of text, for tables; `from_address` is the way back."""
        return f"{self.shard}{_MARK}{self.offset}:{self.size}:{self.member}"

    @classmethod
    def from_address(cls, address: str) -> TarImage | None:
        """None where the text is an ordinary path."""
        shard, mark, rest = address.rpartition(_MARK)
        if not mark:
            return None
        offset, size, member = rest.split(":", 2)
        return cls(shard, member, int(offset), int(size))


def index_shard(shard: Path) -> list[TarImage]:
    """All regular files in a shard, in its order.

    Raises:
        ValueError: compressed, damaged, or not a tar file.
    """
    members = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile() or member.issparse():
                    continue
                members.append(TarImage(str(shard), member.name, member.offset_data, member.size))
    except tarfile.ReadError as error:
        raise ValueError(
            f"{shard} is not an uncompressed .tar file ({error}); shards are read in place, so unpack it "
            "(gunzip) or pack it again without compression."
        ) from error
    end = shard.stat().st_size
    if members and members[-1].offset + members[-1].size > end:
        raise ValueError(f"{shard} is cut off after {end:,} bytes; copy it again.")
    return members


def webdataset_samples(
    shards: list[Path], caption_column: str | None = None
) -> tuple[list[tuple[TarImage, Entry]], list[str]]:
    """The picture and the captions of every sample, and the keys of samples without a picture.

    A sample is what shares its name up to the first dot; hidden files (``._0000.jpg``) are of none. Captions are a
    ``.txt``/``.caption``/``.cap`` member, one a line, or a ``.json`` member with a caption column; with
    ``caption_column`` the ``.json`` member comes first. Of a sample with several pictures the first is taken.
    """
    found, without = [], []
    for shard in shards:
        samples: dict[str, dict[str, TarImage]] = {}
        for member in index_shard(shard):
            path = PurePosixPath(member.member)
            if path.name.startswith("."):
                continue
            stem, _, extension = path.name.partition(".")
            samples.setdefault(str(path.with_name(stem)), {}).setdefault(extension.lower(), member)
        for key, parts in samples.items():
            pictures = (part for ext, part in parts.items() if PurePosixPath(f"x.{ext}").suffix in EXTENSIONS)
            picture = next(pictures, None)
            if picture is None:
                without.append(key)
            else:
                captions = _captions(parts, caption_column)
                found.append((picture, Entry(picture.member, captions, None, f"{key} in {shard}")))
    return found, without


def _captions(parts: dict[str, TarImage], column: str | None) -> list[str]:
    for extension in ("txt", "caption", "cap"):
        if extension in parts and not (column and "json" in parts):
            try:
                text = parts[extension].read().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{parts[extension].name} is not UTF-8 text (byte {error.start}).") from error
            return [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    if "json" in parts:
        name = parts["json"].name
        return captions_of(parse_json(parts["json"].read(), name), column, name)
    return []

"""The models on disk that the playground can open, told from their files alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from limner.models.folder import CONSENSUS, PARTS
from limner.runs import Run
from limner.server.errors import Refusal
from limner.server.watch import Runs, inside

TEXT_TYPES = frozenset(
    {"gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox", "opt", "smollm3", "gemma"}
)


class ModelInfo(BaseModel):
    """A model that can be opened."""

    id: str
    """run:NAME, run:NAME/step-000500, or dir:NAME."""
    kind: Literal["text", "caption"]
    label: str
    path: str
    bytes: int
    parameters: int | None
    run: str | None
    step: int | None
    modified: float
    loaded: bool = False
    consensus: bool = False
    """Whether the captions of its training pictures can choose among its own."""


def list_models(runs: Runs, models_dir: Path | None) -> list[ModelInfo]:
    """Finished models of runs, newest first, then those of the models folder."""
    found = []
    for watched in runs.all():
        info = describe(watched.run.model_path, f"run:{watched.run.name}", watched.run.name, run=watched.run.name)
        if info is not None:
            found.append(info)
    found.sort(key=lambda info: -info.modified)
    if models_dir is not None and models_dir.is_dir():
        for path in sorted(models_dir.iterdir()):
            info = None if path.is_symlink() else describe(path, f"dir:{path.name}", path.name)
            if info is not None:
                found.append(info)
    return found


def find_model(runs: Runs, models_dir: Path | None, id: str) -> ModelInfo:
    """The model of this id.

    Raises:
        Refusal: there is none.
    """
    source, _, name = id.partition(":")
    if source == "run":
        run, _, checkpoint = name.partition("/")
        found = runs.find(run).run
        if checkpoint:
            return _checkpoint(found, checkpoint)
        info = describe(found.model_path, id, run, run=run)
        if info is None:
            raise Refusal("not_found", f"Run '{run}' has no finished model yet.", field="model")
        return info
    if source == "dir" and models_dir is not None:
        info = describe(inside(models_dir, name, "model"), id, name)
        if info is not None:
            return info
    known = "run:NAME" + (", dir:NAME" if models_dir is not None else " (--models-dir gives a folder of others)")
    raise Refusal(
        "not_found", f"There is no model '{id[:100]}'; an id is {known}.", field="model", flag="--models-dir"
    )


def describe(path: Path, id: str, label: str, run: str | None = None) -> ModelInfo | None:
    """What lies at ``path``; None: no model that the playground can open."""
    kind = kind_of(path)
    if kind is None:
        return None
    try:
        files = [file for file in sorted(path.rglob("*.safetensors")) if file.parent.name != CONSENSUS]
        weights = {file: file.stat() for file in files}
    except FileNotFoundError:  # its trainer is replacing it
        return None
    if not weights:
        return None
    return ModelInfo(
        id=id,
        kind=kind,
        label=label,
        path=str(path),
        bytes=sum(stat.st_size for stat in weights.values()),
        parameters=sum(count_parameters(file) for file in weights) or None,
        run=run,
        step=None,
        modified=max(stat.st_mtime for stat in weights.values()),
        consensus=(path / CONSENSUS).is_dir(),
    )


def kind_of(path: Path) -> Literal["text", "caption"] | None:
    """Whether a folder holds a language model or a captioner, by its configuration."""
    if (path / PARTS).is_file():
        return "caption"  # a captioner in stock parts
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    architectures = config.get("architectures") or []
    if config.get("model_type") == "llava":
        return "caption"
    causal = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    return "text" if causal or config.get("model_type") in TEXT_TYPES else None


def count_parameters(file: Path) -> int:
    """The numbers in a safetensors file, from its header."""
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > 100 << 20:
                return 0
            header: dict[str, Any] = json.loads(handle.read(length))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for side in tensor["shape"]:
                    size *= side
                total += size
        return total
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return 0  # not whole: told by loading it


def _checkpoint(run: Run, name: str) -> ModelInfo:
    path = inside(run.checkpoints_path, name, "checkpoint")
    if not (path / "manifest.json").is_file():
        raise Refusal("not_found", f"There is no checkpoint '{name[:100]}' in run '{run.name}'.", field="model")
    weights = path / "model.safetensors"
    verb = run.config.get("verb")
    return ModelInfo(
        id=f"run:{run.name}/{name}",
        kind="text" if verb == "pretrain" else "caption",
        label=f"{run.name}, {name}",
        path=str(path),
        bytes=weights.stat().st_size if weights.is_file() else 0,
        parameters=count_parameters(weights) or None,
        run=run.name,
        step=json.loads((path / "manifest.json").read_text()).get("step"),
        modified=path.stat().st_mtime,
    )

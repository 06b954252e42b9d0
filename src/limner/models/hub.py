"""Stock checkpoints from a folder or a hub: weights only as safetensors, no code, and nothing missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

_WANTED = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt")


def load_stock(
    stock_class: Any, source: str | Path, what: str, *, unused: tuple[str, ...] = (), **settings: Any
) -> Any:
    """``stock_class.from_pretrained(source)``, with every failure said in one sentence.

    Models are read from safetensors only, and a checkpoint that lacks weights is refused: transformers would
    fill them with random numbers and only warn.

    Args:
        stock_class: an Auto class of transformers, or a model class.
        source: a folder, or a hub id.
        what: what is being loaded, for error messages ("vision encoder").
        unused: beginnings of weights' names that may be missing, since nothing here computes with them.
        settings: passed on; None values are dropped.

    Raises:
        FileNotFoundError: a folder that does not exist, or lacks a file.
        OSError: a hub id that does not exist or cannot be reached.
        ValueError: a checkpoint that does not hold what its configuration says.
    """
    check_folder(source, what)
    settings = {key: value for key, value in settings.items() if value is not None}
    is_model = "Config" not in stock_class.__name__ and (
        stock_class.__name__.startswith("AutoModel")
        or (isinstance(stock_class, type(PreTrainedModel)) and issubclass(stock_class, PreTrainedModel))
    )
    if is_model:
        settings |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with quiet_transformers():
            loaded = stock_class.from_pretrained(source, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explained(error, source, what) from error
    if not is_model:
        return loaded
    model, report = loaded
    report["missing_keys"] = [name for name in report["missing_keys"] if not name.startswith(unused)]
    refuse_missing(report, source, what)
    refuse_nonfinite(model, source, what)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Reading and writing models without transformers' bars, which count tensors and break a verb's own output, and
    without its table of every weight that a vision tower leaves in a two-tower checkpoint; what is missing is
    checked here."""
    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


def refuse_missing(report: dict[str, Any], source: str | Path, what: str) -> None:
    """Raises ValueError where ``from_pretrained``'s report tells of weights it did not find or could not fit."""
    missing = sorted(report["missing_keys"])
    wrong = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if missing or wrong:
        first = ", ".join((missing + wrong)[:3])
        raise ValueError(
            f"The {what} in {source} lacks {len(missing)} weights and has {len(wrong)} of another shape than its "
            f"config.json says ({first}...): the checkpoint is incomplete, or is of another kind."
        )


def refuse_nonfinite(model: nn.Module, source: str | Path, what: str) -> None:
    """Raises ValueError where a weight is NaN or infinite: nothing that is computed with it means anything."""
    for name, weight in model.named_parameters():
        if not weight.sum(dtype=torch.float32).isfinite():  # one pass; a NaN anywhere makes the sum one
            raise ValueError(
                f"The {what} in {source} holds numbers that are not finite (in {name}): its training diverged, or "
                "the file is damaged; take an earlier checkpoint."
            )


def check_folder(source: str | Path, what: str) -> None:
    """Raises FileNotFoundError for what looks like a path but is no folder with what is wanted of it: a
    config.json, or of an image processor alone its own settings."""
    folder = Path(source)
    if folder.is_dir():
        needed = ["config.json"] if what != "tokenizer" else []
        if what == "image processor":
            needed += ["preprocessor_config.json", "processor_config.json"]
        if needed and not any((folder / name).is_file() for name in needed):
            article = "an" if what[0] in "aeiou" else "a"
            raise FileNotFoundError(f"{source} has no {needed[-1]}: it is not {article} {what} in stock format.")
    elif folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise FileNotFoundError(f"There is no folder {source} to load the {what} from.")


def local_folder(source: str | Path, what: str, revision: str | None = None, cache_dir: Any = None) -> Path:
    """The folder itself, or the local copy of a hub repository (no weights but safetensors, no code).

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the repository does not exist or cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    check_folder(source, what)
    try:
        return Path(
            snapshot_download(
                str(source),
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=[*_WANTED, *(f"*/{name}" for name in _WANTED)],
                ignore_patterns=["onnx/*"],
            )
        )
    except (OSError, ValueError) as error:
        raise _explained(error, source, what) from error


def _explained(error: Exception, source: str | Path, what: str) -> Exception:
    text = str(error)
    if Path(source).is_dir():
        if "no file named" in text:
            return FileNotFoundError(
                f"{source} has no model.safetensors: the {what} is incomplete (pickles are not read)."
            )
        return ValueError(f"The {what} in {source} cannot be read: {_first_sentence(text)}")
    if "safetensors" in text:
        return OSError(f"{source} has no safetensors weights on the hub, and Limner reads no pickles.")
    if "offline" in text.lower() or "connect" in text.lower() or "LocalEntryNotFound" in type(error).__name__:
        return OSError(
            f"The {what} {source} is not on this machine and the hub cannot be reached; give a local folder in "
            "stock format, or try again with a connection (HF_HUB_OFFLINE unset)."
        )
    return OSError(
        f"The {what} {source} is neither a folder nor a readable hub repository: {_first_sentence(text)}"
    )


def _first_sentence(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no reason was given"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, random weights depend on ``seed`` alone; afterwards the global RNG is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

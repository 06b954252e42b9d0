"""Begins a run, or finds the unfinished one that the same command began before."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from limner.config.training import TrainSettings
from limner.runs import Run, Status, create_run, find_run
from limner.runs.folder import check_name, default_name, free_name, write_config
from limner.runs.state import Told, status_of
from limner.whole_files import write_whole

FREE_FIELDS = frozenset(
    {
        "runs_dir",
        "name",
        "resume",
        "force_new",
        "report_to",
        "log_every",
        "shard",
        "debug",
        "save_dir",
        "prune_cache",
        "pack",
        "cache_dir",
        "sample_prompt",
        "sample_tokens",
    }
)
"""Settings that may differ between the attempts of a run: none of them changes what is computed."""

_MODEL_FIELDS = frozenset({"tokenizer", "init_from", "decoder_model", "base_model"})
"""Settings that may be another run's name."""


@dataclass
class OpenRun:
    """A run that this process may write. ``lock`` is held until `close`; ``resumed``: it was begun before.

    ``new_length``: settings of `LENGTH_FIELDS` that are other ones than before.
    """

    run: Run
    resumed: bool
    lock: IO[bytes]
    new_length: dict[str, Any] = field(default_factory=dict)

    def keep_new_length(self) -> str:
        """Writes the new length among the run's settings; tells in a sentence what was changed."""
        before = self.run.config
        changes = _changes(before["config"], before["config"] | self.new_length)
        write_config(self.run.path, before["verb"], before["config"] | self.new_length, self.run.folder)
        return f"Another length ({'; '.join(changes)}): from here on the learning rate follows the new one."

    def close(self) -> None:
        self.lock.close()


def open_run(verb: str, config: TrainSettings, subject: str) -> OpenRun:
    """Makes the run's folder, or takes up the unfinished run that the settings name.

    A run is taken up when ``resume`` names it, when ``name`` is an unfinished run's, or when ``checkpoints_dir``
    holds an unfinished run's checkpoints.

    Args:
        subject: what the default name tells beside verb and date: the data set, the corpus.

    Raises:
        ValueError: the run is complete, at work in another process, or was begun with other settings.
        FileNotFoundError: ``resume`` names no run. OSError: a folder that the settings name cannot be made.
    """
    make_folders(config)
    settings = json.loads(config.model_dump_json())
    existing, told = _existing(config)
    _refuse_others_checkpoints(config, existing, told)
    if existing is None:
        if config.name is not None:
            check_name(config.name)
        name = config.name or default_name(config.runs_dir, verb, subject)
        if config.force_new:
            name = free_name(config.runs_dir, name)
        run = create_run(config.runs_dir, name, verb, settings)
        return _opened(config, run, False)
    if existing.config["verb"] == verb and told.start is None:
        # A queued run, whose settings the verb has filled in now; or one that was refused before its first step (a
        # corpus that is not there, say), and is now asked for as it should have been.
        opened = _opened(config, existing, False)
        write_config(existing.path, verb, settings)
        return opened
    defaults = type(config).model_construct().model_dump(mode="json", warnings=False)
    before = defaults | _settings(existing)  # a version that lacked a setting did what is now its default
    length = config.LENGTH_FIELDS if config.resume is not None else frozenset()
    _refuse_changes(existing, verb, before, settings, length)
    opened = _opened(config, existing, True)
    opened.new_length = {name: settings[name] for name in length if before.get(name) != settings[name]}
    return opened


def make_folders(config: TrainSettings, *names: str) -> None:
    """Makes the folders that settings name.

    Raises:
        OSError: one of them cannot be made; the message says which setting that is.
    """
    for name in names or ("runs_dir", "cache_dir", "checkpoints_dir", "save_dir"):
        folder: Path | None = getattr(config, name, None)
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            flag = "--" + name.replace("_", "-")
            raise OSError(f"{flag} {folder} cannot be made ({error.strerror}); name another folder.") from error


def _opened(config: TrainSettings, run: Run, resumed: bool) -> OpenRun:
    opened = OpenRun(run, resumed, run.lock())
    _link_checkpoints(config, run)
    return opened


def saved_settings(name_or_path: str, runs_dir: Path | str, verb: str) -> dict[str, Any]:
    """The settings that a run was begun with: what `--resume` starts from.

    Raises:
        FileNotFoundError: there is no such run. ValueError: another verb began it, or its data or models lie in
            another working directory.
    """
    run = find_run(name_or_path, runs_dir)
    if run.config["verb"] != verb:
        began = run.config["verb"]
        raise ValueError(f"Run '{run.name}' was begun by `limner {began}`; continue it with that verb.")
    settings = _settings(run)
    if run.folder.resolve() != Path.cwd():
        _refuse_elsewhere(run, settings)
    # A run that was begun beside another of its name is now to be continued, not begun once more.
    return {name: value for name, value in settings.items() if name != "force_new"}


def _settings(run: Run) -> dict[str, Any]:
    """The settings of a run as this version writes them, its checkpoints' folder as it is called from here."""
    settings = dict(run.config["config"])
    if settings.get("checkpoints_dir") is not None and run.folder.resolve() != Path.cwd():
        settings["checkpoints_dir"] = str(run.folder / settings["checkpoints_dir"])
    if settings.get("save_total_limit") == 10**9:  # how --save was once written down
        del settings["save_total_limit"]
    if settings.get("pack") is True:  # once the default; what can be packed is packed
        del settings["pack"]
    if settings.get("freeze_vision") is False:  # these two were once taken and ignored
        settings.pop("unfreeze_vision_layers", None)
    if not (settings.get("decoder_model") or settings.get("base_model")):
        settings.pop("lora_lr", None)
    return settings


def _refuse_elsewhere(run: Run, settings: dict[str, Any]) -> None:
    """Raises ValueError where a relative path, or another run's name, was good only where the run was begun."""
    for name in settings.keys() - FREE_FIELDS:
        value = settings[name]
        roots = [Path(), Path(settings.get("runs_dir", "runs"))] if name in _MODEL_FIELDS else [Path()]
        for word in value if isinstance(value, list) else [value]:
            if not isinstance(word, str) or any((root / word).exists() for root in roots):
                continue
            if any((run.folder / root / word).exists() for root in roots):
                raise ValueError(
                    f"Run '{run.name}' was begun in {run.folder}, where its {name.replace('_', ' ')} {word!r} "
                    "lies; resume it from there."
                )


def recorded_machine(config: TrainSettings) -> tuple[str, int | None]:
    """Precision and threads for this attempt: what the settings say; what they leave open, as in the run's last
    attempt, since a resumed run repeats itself only in the same arithmetic."""
    _, told = _existing(config)
    start = told.start or {}
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    precision = config.precision
    if precision == "auto" and "precision" in start:
        return names[start["precision"]], config.threads or start["threads"]
    return precision, config.threads or start.get("threads")


def _existing(config: TrainSettings) -> tuple[Run | None, Told]:
    """The run that the settings name, if it is there, and what its log tells of it.

    Raises:
        ValueError: it is complete.
    """
    if config.force_new:
        return None, Told()
    if config.resume is not None:
        run = find_run(config.resume, config.runs_dir)
    else:
        path = _linked_run(config) or (config.runs_dir / check_name(config.name) if config.name else None)
        if path is None or not (path / "config.json").is_file():
            return None, Told()
        run = Run(path)
    told = Told.by(run.events())
    status, _ = status_of(told)  # of its log alone: what was launched last may be this process
    if status is Status.COMPLETED:
        advice = "Choose another --name, or --force-new to start over beside it."
        if config.resume is not None and config.WARM_START is not None:
            advice = f"To train that further, begin a run from it: {config.WARM_START} {run.model_path}."
        if config.checkpoints_dir is not None:
            advice = "Give the new run another --checkpoints-dir: its own checkpoints lie in that one."
        raise ValueError(f"Run '{run.name}' is complete: its model is at {run.model_path}. {advice}")
    return run, told


def _refuse_changes(
    run: Run, verb: str, before: dict[str, Any], settings: dict[str, Any], length: frozenset[str]
) -> None:
    if run.config["verb"] != verb:
        raise ValueError(f"Run '{run.name}' was begun by `limner {run.config['verb']}`, not by `limner {verb}`.")
    if changed := _changes(before, settings, FREE_FIELDS | length):
        raise ValueError(
            f"Run '{run.name}' is unfinished and was begun with other settings ({'; '.join(changed)}). "
            "Give the same settings to resume it, another --name, or --force-new to start over beside it."
        )


def _changes(before: dict[str, Any], after: dict[str, Any], free: frozenset[str] = frozenset()) -> list[str]:
    return [
        f"--{name.replace('_', '-')} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in free and before.get(name) != after.get(name)
    ]


def _refuse_others_checkpoints(config: TrainSettings, run: Run | None, told: Told) -> None:
    """A run would go on from what lies in its checkpoints folder. ``run``: None: its folder is to be made."""
    folder, linked = config.checkpoints_dir, _linked_run(config)
    if folder is None or (run is not None and linked == run.path.resolve()):
        return
    if linked is not None or (told.start is None and any(folder.glob("step-*"))):
        raise ValueError(
            f"{folder} holds the checkpoints of another run; name another folder with --checkpoints-dir, or "
            "leave it out (they then lie in the run's own folder)."
        )


def _linked_run(config: TrainSettings) -> Path | None:
    """The run whose checkpoints lie in the folder, unless it has been deleted or moved."""
    link = config.checkpoints_dir / "run.json" if config.checkpoints_dir else None
    run = Path(json.loads(link.read_text())["run"]) if link and link.is_file() else None
    return run if run and (run / "config.json").is_file() else None


def _link_checkpoints(config: TrainSettings, run: Run) -> None:
    """A checkpoints folder outside the run's own tells whose it is."""
    if config.checkpoints_dir is not None:
        write_whole(config.checkpoints_dir / "run.json", json.dumps({"run": str(run.path.resolve())}))

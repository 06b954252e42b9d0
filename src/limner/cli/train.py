"""``limner train``: a captioner from captioned pictures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from limner.cli.parse import option, parse
from limner.config.train import TrainConfig

if TYPE_CHECKING:
    from limner.data.records import Splits
    from limner.training.task import Progress
    from limner.training.trainer import Result

ENVIRONMENT = {
    "NCCL_P2P_DISABLE": "1",
    "NCCL_IB_DISABLE": "1",
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    "WANDB_PROJECT": "limner",
    "WANDB_LOG_MODEL": "false",
}
"""Set where they are not set already: consumer GPUs have no peer-to-peer, MPS lacks some operators."""


def run(argv: list[str]) -> int:
    config = configuration(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    from limner.training.caption_task import CaptionTask
    from limner.training.self_critical import SelfCriticalTask
    from limner.training.trainer import train

    # Of several processes only the first speaks.
    console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    kind = SelfCriticalTask if config.objective == "cider" else CaptionTask
    task = kind(config, lambda progress: load_records(config, progress, say), say=say)
    if config.plan:
        from limner.training.caption_plan import plan

        print(json.dumps(plan(task, config), indent=2))
        return 0
    result = train(task, config, "train", config.subject())
    if result.reason != "stopped" and result.is_main_process:
        _finish(result, config, say)
        if config.prune_cache:
            task.prune_cache()
    return 130 if result.interrupted else 0


def configuration(argv: list[str]) -> TrainConfig:
    """Arguments, over the settings of the run that `--resume` names; the preset filled in.

    Raises:
        ValueError: no data set.
    """
    default = None
    resumed = option(argv, "--resume")
    if resumed is not None:
        from limner.training.opening import saved_settings

        default = TrainConfig(**saved_settings(resumed, option(argv, "--runs-dir") or "runs", "train"))
    config = parse(TrainConfig, argv, "limner train", default=default)
    if not config.dataset:
        raise ValueError("Say what to train on: --dataset PATH_OR_NAME (`limner data list` shows the names).")
    return config.with_preset({n for n in TrainConfig.model_fields if option(argv, "--" + n.replace("_", "-"))})


def load_records(config: TrainConfig, progress: Progress, say: Callable[[str], None]) -> Splits:
    """The records of the data sets that ``config`` names, and a sentence about them."""
    from limner.data.catalogue import describe, load_splits

    splits = load_splits(config, say, progress)
    say(f"Data: {describe(splits)}.")
    return splits


def _finish(result: Result, config: TrainConfig, say: Callable[[str], None]) -> None:
    model = result.run.model_path
    if config.save_dir is not None:
        try:
            shutil.copytree(model, config.save_dir, dirs_exist_ok=True)
        except OSError as error:  # a list of everything that could not be copied
            reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise OSError(f"The model is at {model}; copying it to {config.save_dir} failed: {reason}") from error
        model = config.save_dir
        say(f"Copied to {model}.")
    say(f"Try it: limner caption {model} PICTURE...")

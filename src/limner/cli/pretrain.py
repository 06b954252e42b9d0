"""``limner pretrain``: a GPT from raw text."""

from __future__ import annotations

import os
from pathlib import Path

from limner.cli.parse import option, parse
from limner.config.pretrain import PRESET_NAMES, PretrainConfig, from_yaml


def run(argv: list[str]) -> int:
    config = _configuration(argv)
    if config.plan:
        return _plan(config)
    from rich.console import Console

    from limner.training.pretrain_task import PretrainTask

    # Of several processes only the first speaks.
    console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    task = PretrainTask(config, say=lambda text: console.print(text, markup=False, soft_wrap=True))
    from limner.training.trainer import train

    result = train(task, config, "pretrain", config.subject())
    if result.reason != "stopped":
        model = result.run.model_path
        console.print(f"Sample from it: limner generate {model} --prompt ...", markup=False, soft_wrap=True)
    return 130 if result.interrupted else 0


def _configuration(argv: list[str]) -> PretrainConfig:
    """Arguments over the resumed run's settings, or over the YAML file's."""
    argv = list(argv)
    default = None
    resumed = option(argv, "--resume")
    source = option(argv, "--config", "-c")
    if resumed is not None:
        from limner.training.opening import saved_settings

        if source is not None and source not in PRESET_NAMES:
            raise ValueError(f"--resume goes on with the run's own settings; leave out --config {source}.")
        default = PretrainConfig(**saved_settings(resumed, option(argv, "--runs-dir") or "runs", "pretrain"))
    elif source is not None and source not in PRESET_NAMES:
        default = from_yaml(Path(source))
        argv = _without(argv, source)
    if default is not None and option(argv, "--sample-prompt") is not None:
        default = default.model_copy(update={"sample_prompt": ()})  # tyro would append to those
    return parse(PretrainConfig, argv, "limner pretrain", default=default)


def _without(argv: list[str], source: str) -> list[str]:
    """The arguments less the YAML file, whose own ``config`` names the preset."""
    words = []
    skip = False
    for i, word in enumerate(argv):
        if skip:
            skip = False
        elif word in ("--config", "-c") and argv[i + 1 : i + 2] == [source]:
            skip = True
        elif word not in (f"--config={source}", f"-c={source}"):
            words.append(word)
    return words


def _plan(config: PretrainConfig) -> int:
    """Tells what the run would be, on standard output; the model's part also where the text is not to be had."""
    from limner.device import choose, matrix_flops
    from limner.training.opening import make_folders
    from limner.training.pretrain_task import PretrainTask

    make_folders(config, "cache_dir")
    choice = choose(config.device, config.precision, config.threads)
    task = PretrainTask(config)
    try:
        task.prepare_data(lambda *progress: None)
        lines = task.describe_data()
    except FileNotFoundError:  # a mistyped name
        raise
    except OSError as error:
        lines = [f"Without the text: {error}"]
    task.measure(task.shape(), choice.device, choice.dtype)
    costs = task.plan
    lines += costs.describe(task.memory)
    peak = matrix_flops(choice.dtype, choice.device.type)
    lines.append(
        f"Compute: {costs.flops_per_token / 1e6:,.0f} MFLOP a token, forward and backward; this machine's matrix "
        f"peak is {peak / 1e12:.2f} TFLOP/s ({choice}): at most {peak / costs.flops_per_token:,.0f} tokens/s."
    )
    if hasattr(task, "training"):
        steps, tokens = task.total_steps(), task.total_tokens()
        lines.append(
            f"Length: {len(task.training):,} windows of {task.training.context} tokens; {steps:,} steps, "
            f"{tokens:,} tokens; at least {tokens * costs.flops_per_token / peak:,.0f} s."
        )
    for line in lines:
        print(line)
    return 0

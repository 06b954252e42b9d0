"""From arguments to a typed configuration: tyro renders the pydantic models."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def parse(
    config_type: type[T],
    argv: list[str],
    prog: str,
    description: str | None = None,
    default: T | None = None,
) -> T:
    """Parses ``argv`` into ``config_type``; exits with tyro's help or its error when that is what is due.

    ``--debug`` (which shows tracebacks) is taken by `limner.cli.main` and dropped here, unless the
    configuration has a field of that name.

    Args:
        default: what arguments that are not given are taken from (a preset, a file, a run that is resumed).
    """
    import tyro

    fields = getattr(config_type, "model_fields", {})
    if "--debug" in argv and "debug" not in fields:
        argv = [word for word in argv if word != "--debug"]
    argv = _spell_out_flags(argv, {name for name, field in fields.items() if field.annotation == (bool | None)})
    given: dict[str, Any] = {} if default is None else {"default": default}
    if not fields:  # a union of sub-commands
        return tyro.cli(config_type, args=argv, prog=prog, description=description, **given)
    # tyro would print a contradiction between settings in pydantic's words. It gets a class that only keeps the
    # values; the error of the real one becomes one sentence in `limner.cli.main`.
    values = {"__init__": _keep, "__doc__": config_type.__doc__, "__module__": config_type.__module__}
    draft: Any = type(config_type.__name__, (config_type,), values)
    kept = tyro.cli(draft, args=argv, prog=prog, description=description, **given)
    return config_type(**vars(kept))


def _keep(self: Any, **values: Any) -> None:
    object.__setattr__(self, "__dict__", values)


def _spell_out_flags(argv: list[str], undecided: set[str]) -> list[str]:
    """``--x`` and ``--no-x`` for settings that are True, False or left to Limner; tyro wants a value there."""
    flags = {"--" + name.replace("_", "-") for name in undecided}
    words: list[str] = []
    for i, word in enumerate(argv):
        following = argv[i + 1] if i + 1 < len(argv) else ""
        flag = word.replace("_", "-")
        if flag in flags and following not in ("True", "False", "None"):
            words += [flag, "True"]
        elif flag.startswith("--no-") and "--" + flag[5:] in flags:
            words += ["--" + flag[5:], "False"]
        else:
            words.append(word)
    return words


def option(argv: list[str], *names: str) -> str | None:
    """The value of an option, before tyro reads the rest: what is needed to choose the defaults."""
    for i, word in enumerate(argv):
        for name in names:
            if word == name and i + 1 < len(argv):
                return argv[i + 1]
            if word.startswith(name + "="):
                return word[len(name) + 1 :]
    return None

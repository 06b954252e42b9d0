"""``limner VERB ...``: finds the verb, runs it, and turns an error into one clear sentence.

Nothing is imported for a verb that is not asked for: ``limner --help`` needs neither torch nor tyro.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

VERBS = {
    "demo": "train a captioner from nothing on drawn scenes, and prove that it sees",
    "train": "train or fine-tune a captioner on captioned pictures",
    "caption": "put pictures into words",
    "pretrain": "pretrain a GPT from raw text",
    "generate": "continue a prompt with a language model",
    "evaluate": "caption a data set and score the captions; compare two models",
    "score": "score captions against references, without a model",
    "data": "list, prepare, report on, clean, merge and label data sets",
    "review": "accept, edit or reject captions in a page",
    "runs": "list, tail, pause, resume, stop and delete runs",
    "serve": "the dashboard: start, watch and steer runs in a browser",
    "doctor": "what this machine has, and what Limner makes of it",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 an error in what was asked, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    debug = "--debug" in rest
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        print("limner: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has left: not an error
        return 0
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # what Rich makes of it
            return 0
        raise
    except Exception as error:
        if debug:
            raise
        print(f"limner {verb}: {_sentence(error)}", file=sys.stderr)
        return 1


def _run(verb: str, rest: list[str]) -> int:
    if verb in VERBS:
        return import_module(f"limner.cli.{verb}").run(rest)
    if verb in ("-h", "--help", "help"):
        print(_help(), flush=True)
        return 0
    if verb in ("-V", "--version"):
        from limner import __version__

        print(f"limner {__version__}", flush=True)
        return 0
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean `limner {near[0]}`?" if near else "`limner --help` lists the verbs."
    print(f"limner: there is no verb '{verb}'; {hint}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "Limner: a workshop for small models that put pictures into words.",
            "",
            "usage: limner VERB [--help] ...",
            "",
            *lines,
            "",
            "Start with `limner demo`. `limner VERB --help` tells all settings of a verb.",
        ]
    )


def _sentence(error: Exception) -> str:
    """One sentence for a person. What is not the user's to mend says that it is a bug, and how to see more."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(map(_problem, error.errors()))
    if isinstance(error, (ValueError, OSError, ImportError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (this looks like a bug in Limner; --debug shows where)"


def _problem(found: ErrorDetails) -> str:
    """What pydantic found wrong, in the words of a command line."""
    message = found["msg"].removeprefix("Value error, ")
    if not found["loc"]:
        return message
    name = str(found["loc"][0])
    if found["type"] == "extra_forbidden":
        return f"There is no setting '{name}'."
    flag = "--" + name.replace("_", "-")
    wanted = message.removeprefix("Input should be ")
    if wanted == message:
        return f"{flag}: {message}"
    wanted = wanted.replace("a valid tuple", "a list").replace("a valid ", "a ").replace("a integer", "an integer")
    return f"{flag} is {found['input']!r}; it should be {wanted}."

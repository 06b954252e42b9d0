"""The typed configuration of every verb: one file a verb, each a pydantic model.

A field's docstring is its help text on the command line, its tooltip in the dashboard's form and its line in
the docs; it is written once, here. Contradictions are refused when the model is built.
"""

from limner.config.base import Config, RunConfig, command_line

__all__ = ["Config", "RunConfig", "command_line"]

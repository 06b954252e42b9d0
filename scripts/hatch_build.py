"""Tells who builds a wheel that the dashboard's page is not in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        page = Path(self.root) / "src/limner/server/page/index.html"
        if version == "standard" and not page.is_file():
            self.app.display_warning("The dashboard's page is not in this wheel: run `make page` before you build.")

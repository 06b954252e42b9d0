"""Settings of ``limner serve``."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import Field, model_validator

from limner.config.base import Config


class ServeConfig(Config):
    """The dashboard: start, watch and steer runs in a browser."""

    host: str = "127.0.0.1"
    """The address to listen on. Any other than this machine's own asks for the token as well."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port; the next free one where it is taken. 0: any free one."""
    runs_dir: Path = Path("runs")
    """The folder that holds the runs."""
    models_dir: Path | None = None
    """A folder of model directories that the playground may open, beside the runs' own models."""
    browser: bool = True
    """Open the page in a browser."""
    demo: bool = False
    """Also show the recorded demo run that comes with Limner."""
    token: str | None = None
    """The secret in the printed address; unset: a random one, kept with the runs, so that open pages survive a
    restart."""
    new_token: bool = False
    """Make a new random secret: whoever is signed in is signed out."""
    allow_host: tuple[str, ...] = ()
    """Further names by which this server may be called (the Host header), for example behind a tunnel."""
    allow_origin: tuple[str, ...] = ()
    """Further pages that may talk to this server, such as http://localhost:5173 of a development server."""
    allow_urls: bool = False
    """Let the playground fetch pictures from http(s) addresses."""
    max_upload_mb: int = Field(default=20, ge=1)
    """The largest picture file that is taken, in MB."""
    max_megapixels: int = Field(default=64, ge=1)
    """The largest picture that is decoded, in millions of pixels."""
    worker_threads: int = Field(default=1, ge=1)
    """CPU threads of the playground's process, so that it leaves the cores to the trainer."""
    worker_memory_gb: float = Field(default=4.0, gt=0)
    """Models that the playground keeps loaded, in GB; the least recently used one goes first."""
    worker_timeout: float = Field(default=300.0, gt=0)
    """Seconds that one request to the playground may take."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        if self.token is not None and len(self.token) < 16:
            raise ValueError("--token is too short to be a secret: give at least 16 characters, or leave it away.")
        if self.token is not None and not self.token.isascii():
            raise ValueError("--token must be plain ASCII: it stands in an address and a header.")
        if self.token is not None and self.new_token:
            raise ValueError("--token and --new-token contradict each other; give one of them.")
        return self


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) is this machine talking to itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"

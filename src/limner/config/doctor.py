"""Settings of ``limner doctor``."""

from __future__ import annotations

from limner.config.base import Config, Device, Precision


class DoctorConfig(Config):
    """What this machine has, and what Limner makes of it."""

    device: Device = "auto"
    """The device to look at."""
    precision: Precision = "auto"
    """The precision to look at."""

"""Pictures, captions and text: from files to batches."""

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""``progress(phase, done, total, unit)``: told while data is prepared."""

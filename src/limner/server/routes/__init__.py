"""The HTTP interface: one file a part of the page."""

"""One trainer and its small tasks."""

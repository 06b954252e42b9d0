"""Pictures, captions and text: from files to batches."""

"""The models: a GPT written to be read, the captioner, and their stock checkpoints."""

"""Names within a model's folder, for those too who must not import torch to look for them."""

PARTS = "limner.json"
"""Of a captioner that LLaVA cannot express: what its stock parts leave unsaid. No other model has it."""
CONSENSUS = "consensus"
"""The folder of what a captioner's training captions say (`limner.decoding.consensus`). Stock tools do not look
there."""

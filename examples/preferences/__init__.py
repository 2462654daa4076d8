"""An example: SmolLM2 learns which answer is the better one, by DPO and as a reward model."""

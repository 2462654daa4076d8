"""The decoder, the model families it covers, and Hugging Face weights in and out. Used by `trainer` only."""

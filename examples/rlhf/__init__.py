"""From a chat model to one that prefers what people preferred: every stage of the workflow, at its smallest."""

"""Speed and memory of training on GPUs, measured through the trainer's own code. A tool: nothing imports it."""

"""Rollouts: vLLM engines as Ray actors, the weights they get from the trainer, and the samples they give back.

For the recipes that sample from the policy. Only `engine`, `engine_loop`, `vllm_parts` and what runs inside vLLM's
workers import vLLM.
"""

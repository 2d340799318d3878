"""Routing captured from a Hugging Face model as it runs: hooks, prompts, a trace on disk."""

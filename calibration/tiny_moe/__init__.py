"""A small MoE language model trained here, and the real routing trace that was captured from it."""

"""LoRA files: what is in them, what they change, and the bake into the weights."""

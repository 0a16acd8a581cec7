"""The packed transformer, its weights, and model packs."""

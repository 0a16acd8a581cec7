"""Model packs: manifests, and where on this machine each part of a model was found. No torch."""

"""Job files from what is there already: sidecars, videos and pictures with a recipe, the original goan's files."""

"""goan: a headless batch renderer for FramePack image-to-video."""

__version__ = "0.1.0"

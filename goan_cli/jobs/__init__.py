"""What the user asked for: job files, presets, sizes, and the section plan."""

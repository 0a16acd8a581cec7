"""What a render leaves on disk: video, sidecar, pictures."""

"""ffmpeg, and video files by it. No other room starts ffmpeg or asks it anything."""

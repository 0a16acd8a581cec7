#!/usr/bin/env bash
# What comes after a render: its job again, its latents decoded in another form, its videos joined.
# goan render examples --out FOLDER, then: examples/after.sh FOLDER
set -euo pipefail
cd "$1"

# The job that a video was made from, out of the video, as a job file: rendered again it makes the same latents.
goan recipe "sky-3-dusk@0.8.mp4" > again.yaml
goan render again.yaml --out again --on-exists replace

# The latents that were kept, decoded again: smaller, in another container, with twice the frames.
goan decode "sky-3-dusk@0.8.latents.safetensors" --out sky.webm --crf 36 --interpolate 60 --replace

# One video after the other, a fifth of a second of each going over into the next.
goan join goes-on.mp4 leads-up.mp4 --out joined.mp4 --cross-fade 0.2 --replace

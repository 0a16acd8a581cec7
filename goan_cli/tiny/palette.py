"""The names of the tiny world, and what they look like. No torch."""

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (0.88, 0.14, 0.12),
    "green": (0.12, 0.70, 0.22),
    "blue": (0.14, 0.30, 0.92),
    "yellow": (0.95, 0.86, 0.14),
    "purple": (0.62, 0.16, 0.80),
    "white": (0.96, 0.96, 0.96),
}
# The light that dusk leaves on a background.
DUSK = (0.20, 0.21, 0.36)
# Steps along x and y (downwards) of a shape that travels.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "bounce", "grow", "shrink", "still")

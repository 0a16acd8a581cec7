"""The engine: conditioning, sampling, decoding, and the plan of a render."""

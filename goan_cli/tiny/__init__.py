"""The embedded tiny pack that renders on any machine."""

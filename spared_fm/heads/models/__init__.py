"""The published models that SpaRED compares, and their followers, on cached vectors instead of pixels."""

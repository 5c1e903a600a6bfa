"""The published SpaRED preprocessing, step by step, and a mode that fits on training spots only."""

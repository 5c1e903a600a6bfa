"""Similarity search: vectors in, ids out."""

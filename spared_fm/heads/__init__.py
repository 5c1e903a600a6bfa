"""Heads: fit targets on embeddings. Arrays in, arrays out; see `base.Head` for the protocol."""

"""The encoders room: which encoders there are, how one is built, and where its weights come from. Knows nothing of ours."""

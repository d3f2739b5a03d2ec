"""Attention blocks that encoders and decoders are built from; each file is one of them, whole."""

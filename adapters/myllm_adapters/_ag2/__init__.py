"""The parts of `myllm_adapters.ag2`."""

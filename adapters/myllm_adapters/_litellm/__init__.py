"""What `myllm_adapters.litellm` is made of, one concern a module."""

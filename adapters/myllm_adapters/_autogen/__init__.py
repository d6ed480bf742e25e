"""The parts of `myllm_adapters.autogen`: what an entry says, who answers it, and errors."""

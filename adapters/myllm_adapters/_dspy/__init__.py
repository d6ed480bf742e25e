"""The parts of `myllm_adapters.dspy`: the LM, its engines and what they translate; ChatAdapter; Embedder."""

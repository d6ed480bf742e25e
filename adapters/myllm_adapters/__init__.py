"""Adapters: your own servers as native citizens of DSPy, AutoGen and LiteLLM.

    import myllm_adapters.litellm                       # registers the provider `myllm/…`
    from myllm_adapters.autogen import llm_config       # an entry for AutoGen's config_list

Each module imports one framework and says which extra brings it when it is missing. Nothing is imported
here, so that one adapter never pays for another's framework.
"""

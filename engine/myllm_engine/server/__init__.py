"""Serve an engine over HTTP in the dialects of OpenAI (as vLLM extends it) and of TGI.

`app.build_app` makes the application, `cli.serve` is the command. Importing this package imports nothing of
either: no torch and no HTTP library.
"""

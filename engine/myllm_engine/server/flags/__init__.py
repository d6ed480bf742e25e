"""Define the options of `myllm serve`, in groups by concern.

A group is a dataclass whose fields are the options (`option.flag`); `command.Flags` holds all groups, and
says what becomes of them. Nothing here imports torch or an HTTP library: `myllm serve --help` is quick.
"""

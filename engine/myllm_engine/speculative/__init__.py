"""Propose tokens that one step verifies together.

What is proposed changes no output: each place is drawn with the random numbers it would have had without
proposals (they depend on the seed and the position alone), and a proposal counts where it is what was drawn.
So greedy text, seeded text and the distribution of samples are what they are without speculation, as far as
the logits are equal.
"""

from .build import make_speculator
from .control import Speculator
from .forced import draft_forced

__all__ = ["Speculator", "draft_forced", "make_speculator"]

"""Combining adapters in weight space: several become one.

combining    puts it together: `combine`
rules        what a user's options mean: `Rule`
mixing       of tensors by name, as a method says when it says no more
arithmetic   of tensors, value by value
factors      of changes that are kept as two factors
heads        of trained heads
"""

from hub.combining.combining import combine
from hub.combining.rules import Rule

__all__ = ["Rule", "combine"]

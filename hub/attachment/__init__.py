"""Attaching a composition to a base model, and taking it off again without a trace.

attaching    puts them together: `attach`
admission    which adapters, and whether they may
fitting      an adapter's live modules for one model, all checked
effects      the hooks that let them act at a module; experts: at one of a stack
fronts       the hooks that put virtual positions in front of the tokens and take them off
  layouts    what stands in front of each row; placing: where
  arguments  a forward's, widened; numbering: their positions; checking: before
  frames     what is known while a forward runs; caches: what the next one finds
  cutting    the outputs; crossing: from an encoder to its decoder
prefixes     keys and values in front, at one attention or through all
hanging      the hooks of fronts and prefixes
gradients    through layers that write their own backward
merging      folding adapters into the weights, and back; substitutes: into quantized ones
summary      what learns, in numbers
"""

from hub.attachment.admission import Composition
from hub.attachment.attaching import Attachment, attach

__all__ = ["Attachment", "Composition", "attach"]

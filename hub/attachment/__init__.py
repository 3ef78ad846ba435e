"""Attaching a composition to a base model, and taking it off again without a trace.

fitting     an adapter's live modules for one model, all checked
effects     the hooks that let them act
merging     folding them into the weights, and back
summary     what learns, in numbers
attaching   puts them together: `attach`
"""

from hub.attachment.admission import Composition
from hub.attachment.attaching import Attachment, attach

__all__ = ["Attachment", "Composition", "attach"]

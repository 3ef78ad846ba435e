"""What a site is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Site:
    """A place in a base model where a method acts.

    A projection is a linear layer: its module takes (..., in_features) and returns
    (..., out_features); its weight is (out_features, in_features), the other way round where
    `transposed`. A branch is what a layer adds to its residual stream, after projection and
    dropout, before the skip connection is added: its module returns it, as element `output_index`
    where it returns a tuple or a mapping, and both sizes are d_model. `stream` is the path of a
    module that is given the stream which the branch is added to, where there is one, and `norm`
    that of the norm that comes right after the sum, as in BERT. A norm brings every vector to one
    scale; both sizes are the length of the vectors.

    `block` is the index of the layer, None outside the layers; an encoder's and a decoder's layers
    are each counted from 0. `input_name` is the keyword of the module's first tensor where no
    tensor comes by position.

    `tied` is the path of the first of several projections that hold one weight, in each of them.

    `bias` says whether a projection or a norm has one. An embedding is a projection too, of role
    embedding: it takes token ids and its sizes are (vocabulary, width); its weight is (vocabulary,
    width), as `transposed` says. So is one expert of a layer that keeps its experts' weights
    stacked in one parameter: `expert` is its place there, and the path
    ``{module}.{parameter}.{expert}``.

    The site of kind embedding is the model's input, where virtual tokens are put in front; both
    sizes are d_model. The path is that of the input embeddings; `offset` is how many positions the
    model puts in front by itself, there and at an attention. There is one, of role input, or
    encoder in an encoder-decoder model.

    A site of kind attention is a module that lets positions look at each other: `in_features` is
    the width of one position's keys, all `heads` together, `out_features` that of its values.
    `feeds` are the paths of the projections that make them, from vectors of `width`. `direct` says
    that the module goes through transformers' AttentionInterface, so that its query and output can
    be reached. `inserted` says that virtual positions can't be given to the attention alone and go
    through the whole model as tokens: the widths are then those of what the feeds give, and
    `out_features` is 0 unless there is one for the keys and one for the values; `axis` is that of
    the positions there. `cached` says that a plain cache keeps just its keys and values. `turned`
    says that keys are changed on the way from there, by their
    position or a norm. An encoder-decoder model has such sites in the decoder, for its look at
    itself, and their role is decoder; elsewhere it is attention.

    `row_axis` and `position_axis` are the axes of rows and positions in what comes out, the same
    one where the positions of the first row are followed by those of the second; None where there
    is no such axis: a pooler has no positions, nor has what a decoder makes of an encoder's output,
    and an expert that is a module of its own gets the tokens that chose it, of whatever row.

    Roles of a projection: query, key, value, qkv (several of them), output (of an attention); in,
    gate, out (of a feed-forward or a mixer; a gate goes through the activation); head (after the
    last layer); embedding; other. Roles of a branch: attention, cross-attention, feedforward, mixer
    (whatever else lets positions see each other). A norm's role is norm.
    """

    kind: Literal["projection", "branch", "norm", "attention", "embedding"]
    path: str
    role: str
    block: int | None
    in_features: int
    out_features: int
    transposed: bool = False
    output_index: int | None = None
    input_name: str | None = None
    bias: bool = False
    expert: int | None = None
    feeds: tuple[str, ...] = ()
    heads: int = 0
    direct: bool = False
    inserted: bool = False
    axis: int = 1
    width: int = 0
    turned: bool = False
    cached: bool = False
    offset: int = 0
    stream: str | None = None
    norm: str | None = None
    tied: str | None = None
    row_axis: int | None = None
    position_axis: int | None = None

    def __hash__(self) -> int:
        # Of what tells the sites of a model apart; all the fields would be hashed at every look-up.
        return hash((self.kind, self.path, self.output_index))

    @property
    def owner(self) -> str:
        """The path of the module that the site belongs to."""
        return self.path if self.expert is None else self.path.rsplit(".", 2)[0]

    @property
    def part(self) -> tuple[str, int] | None:
        """Of a stacked expert: the name of its parameter in the module, and its place there."""
        return None if self.expert is None else (self.path.rsplit(".", 2)[1], self.expert)

"""Sites: the places in a base model where a method acts, found by looking at one tiny forward.

tracing     runs the forward and keeps what ran      dataflow   which value came from which
residuals   what is added to the stream              roles      what a projection is for
layers      which modules repeat                     norms      what brings vectors to one scale
attending   what goes through transformers' attention functions
attention   where positions look at each other, and virtual tokens go in
search      puts them together: `find_sites`
"""

from hub.sites.attention import find_stacks
from hub.sites.search import Site, find_sites, unwrap_model
from hub.sites.tracing import ATTACHED

__all__ = ["ATTACHED", "Site", "find_sites", "find_stacks", "unwrap_model"]

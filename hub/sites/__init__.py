"""Sites: the places in a base model where a method acts, found by looking at one tiny forward.

tracing     runs the forward and keeps what ran      dataflow   which value came from which
residuals   what is added to the stream              roles      what a projection is for
layers      which modules repeat                     norms      what brings vectors to one scale
search      puts them together: `find_sites`
"""

from hub.sites.search import Site, find_sites, unwrap_model
from hub.sites.tracing import ATTACHED

__all__ = ["ATTACHED", "Site", "find_sites", "unwrap_model"]

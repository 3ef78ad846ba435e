"""Sites: the places in a base model where a method acts, found by looking at one tiny forward.

site        what a site is                           search     finds them: `find_sites`
tracing     runs the forward and keeps what ran      dataflow   which value came from which
attending   what goes through transformers' attention functions
reading     reads the sites out of it, by means of
linears     which modules multiply, and their sizes  experts    weights stacked in one parameter
residuals   what is added to the stream              streams    the stream beside a branch
layers      which modules repeat                     roles      what a projection is for
attention   where positions look at each other       norms      what brings vectors to one scale
ties        weights that several modules hold    axes       where rows and positions are
shifting    whether a row may start later, behind padding
"""

from hub.sites.attention import find_stacks
from hub.sites.search import find_sites, unwrap_model
from hub.sites.shifting import find_shift
from hub.sites.site import Site
from hub.sites.tracing import ATTACHED

__all__ = ["ATTACHED", "Site", "find_shift", "find_sites", "find_stacks", "unwrap_model"]

"""A small server that speaks the Hugging Face Hub's API for models, on loopback.

    with HubServer(folder, tokens={"secret": User("ana")}) as server:
        HfApi(endpoint=server.url, token="secret").create_repo("ana/sst2")

It is for `huggingface_hub` and what stands on it (peft, transformers, ours), so what it does is
what that client asks for; its state is a folder (see `storage`), and a restart serves the same.

Where it differs from the real Hub:

- models alone: no datasets, spaces, discussions or pull requests;
- no xet. A client that has `hf_xet` sends what preupload calls `lfs` through xet alone and has
  no way back, and nothing in its requests tells. So preupload says `regular` for every file below
  `lfs_from` (1 GiB when nothing is said), which all clients can push, and `lfs` from there on,
  which takes HF_HUB_DISABLE_XET=1 on the client's side;
- how a file came does not matter for how it is listed: weights, binaries and files over 10 MiB
  are LFS files with their sha256, whichever way they were pushed;
- files are served where they are asked for, without the redirect to a CDN;
- a new repo holds nothing, not even .gitattributes, and a commit that changes nothing is none:
  the answer is the branch's head, so a retried push adds no second commit;
- a README.md whose metadata can't be read is refused, but licenses, languages and the like are
  not checked against a list.

It answers on 127.0.0.1 alone, has no TLS, and refuses pages in a browser (an Origin header) and
names other than 127.0.0.1 and localhost: it is no server for an open network.
"""

from hub.errors import PackageMissing

try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as missing:
    raise PackageMissing(missing.name or "starlette", "serve") from missing

from hub.server.accounts import User
from hub.server.app import create_app
from hub.server.running import HubServer

__all__ = ["HubServer", "User", "create_app"]

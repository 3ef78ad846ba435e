"""Remotes: where versions are published, a Hugging Face Hub endpoint or a folder.

publications   what a remote is and what it says of itself
repositories   one on the Hub                       folders    one on a disk
cards          the README.md beside the files       facts     what it says, read out of the files
explanations   a client's error in one line
transfers      puts them together: `push`, `pull`, `fetch`
"""

from hub.remotes.transfers import fetch, open_remote, pull, push, receive

__all__ = ["fetch", "open_remote", "pull", "push", "receive"]

"""Recipes: a composition as a version, stored, read and moved. The value is `hub.composition`.

recipe     its own file, `composition.json`       parts      the versions that it is made of
pinning    its leaves found as versions           bundles    its files outside of a registry
arrivals   from a folder or a remote into a registry
"""

"""Methods from installed plugins: found by entry point, one by one, when they are asked for.

Nothing is imported until a method is named, and one plugin that fails takes no other with it: the
reason is remembered and shown by `hub methods`.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from hub import hookspecs
from hub.errors import MethodError

if TYPE_CHECKING:
    from hub.method import Method

GROUP = "hub"


@dataclass(frozen=True)
class Plugin:
    """One entry point as `hub methods` shows it.

    method: None where the plugin can't be used; then `fault` says why.
    """

    name: str
    distribution: str
    method: Method[Any] | None
    fault: str | None


class Methods:
    """The methods of a set of entry points. `installed_methods()` is the one everyone uses."""

    def __init__(self, entries: Sequence[EntryPoint]) -> None:
        self._entries: dict[str, list[EntryPoint]] = {}
        for entry in entries:
            self._entries.setdefault(entry.name, []).append(entry)
        self._found: dict[str, Method[Any]] = {}
        self._faults: dict[str, MethodError] = {}
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._lock = threading.RLock()

    def get(self, name: str) -> Method[Any]:
        """The method of that name.

        Raises MethodError where there is none, where two distributions claim the name, or where
        its plugin can't be used.
        """
        with self._lock:
            if name in self._faults:
                raise self._faults[name]
            if name not in self._found:
                try:
                    self._found[name] = self._load(name)
                except MethodError as error:
                    if name in self._entries:
                        self._faults[name] = error
                    raise
            return self._found[name]

    def get_by_peft_type(self, peft_type: str) -> Method[Any]:
        """The method whose files say this in `peft_type`. Raises MethodError."""
        usual = peft_type.lower()
        names = sorted(self._entries, key=lambda name: name != usual)
        for name in names:
            try:
                method = self.get(name)
            except MethodError:
                if name == usual:
                    raise
                continue
            if method.peft_type == peft_type:
                return method
        raise MethodError(
            f"no installed method reads peft_type {peft_type!r}; installed: {self._listed()}; "
            "install a plugin that does, or load the adapter with peft"
        )

    def call(self, hook: str, method: str, **arguments: Any) -> Any:
        """Ask one hook of the plugin that owns `method`; None where it does not implement it."""
        self.get(method)
        return self._call(hook, method, arguments)

    def plugins(self) -> list[Plugin]:
        """Every entry point with its method or its fault, by name."""
        rows = []
        for name in sorted(self._entries):
            method, fault = None, None
            try:
                method = self.get(name)
            except MethodError as error:
                fault = str(error)
            rows += [Plugin(name, describe(e), method, fault) for e in self._entries[name]]
        return rows

    def _load(self, name: str) -> Method[Any]:
        entries = self._entries.get(name, [])
        if not entries:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "install the plugin that has it"
            raise MethodError(f"no method {name!r}; installed: {self._listed()}; {hint}")
        if len(entries) > 1:
            owners = " and ".join(sorted(describe(entry) for entry in entries))
            raise MethodError(
                f"method {name!r} is claimed by {owners}; uninstall all but one of them"
            )
        entry = entries[0]
        where = f"plugin {name!r} of {describe(entry)}"
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:
            raise MethodError(
                f"{where} can't be imported: {type(error).__name__}: {one_line(error)}"
            ) from error
        return self._register(name, plugin, where)

    def _register(self, name: str, plugin: Any, where: str) -> Method[Any]:
        from hub.method import Method

        interface = getattr(plugin, "hub_interface", hookspecs.INTERFACE)
        if interface != hookspecs.INTERFACE:
            raise MethodError(
                f"{where} was written for hook interface {interface}, this pefthub has "
                f"{hookspecs.INTERFACE}; install a matching release of either"
            )
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
            method = self._call("hub_method", name, {})
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=name)
            raise MethodError(f"{where}: {one_line(error)}") from error
        except Exception as error:
            self._manager.unregister(name=name)
            raise MethodError(
                f"{where}: hub_method failed: {type(error).__name__}: {one_line(error)}"
            ) from error
        if isinstance(method, Method) and method.name == name:
            return method
        self._manager.unregister(name=name)
        if method is None:
            fault = "it implements no hub_method; decorate one with @hub.hookimpl"
        elif not isinstance(method, Method):
            fault = f"hub_method returned {type(method).__name__}, not a hub.Method"
        else:
            fault = f"its entry point is named {name!r} but its method {method.name!r}"
        raise MethodError(f"{where}: {fault}")

    def _call(self, hook: str, name: str, arguments: dict[str, Any]) -> Any:
        others = [p for n, p in self._manager.list_name_plugin() if n != name and p is not None]
        return self._manager.subset_hook_caller(hook, others)(**arguments)

    def _listed(self) -> str:
        return ", ".join(sorted(self._entries)) or "none"


@cache
def installed_methods() -> Methods:
    """The methods of the distributions installed in this environment."""
    return Methods(list(entry_points(group=GROUP)))


def describe(entry: EntryPoint) -> str:
    """The distribution that brings an entry point, with its version."""
    dist = entry.dist
    return f"{dist.name} {dist.version}" if dist is not None else entry.value


def one_line(error: BaseException) -> str:
    """An error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__

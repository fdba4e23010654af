"""How lanes are compiled: numba without fast-math (contraction into fused multiply-add would change results), without
the interpreter lock, and kept on disk so that only the first start pays.

The kept code lives in a folder named after the sources of all lanes: numba looks at the file of a kernel alone, and
would go on using one whose helpers in another file have changed.

Compiled code calls its parts by name, and kernels that were compiled in different processes and are loaded into one
would share the part that was loaded first: numba tells functions of one name apart by a number that counts from 1 in
every process. So parts are seen inside their kernel only (parts.py), and, as that hangs on numba, every function has a
name of its own besides.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core import collector

_decorating = threading.Lock()
_this_thread = threading.local()
# Told of every kernel that is being compiled: watch.
_observers: list[Callable[[str, bool], None]] = []
# (module, name) of what `named` has named.
_names: set[tuple[str, str]] = set()


@cache
def available() -> bool:
    """Whether numba is installed (and not switched off by QUANTBENCH_NO_LANES)."""
    return not os.environ.get("QUANTBENCH_NO_LANES") and find_spec("numba") is not None


@cache
def _folder() -> Path | None:
    """Where compiled kernels are kept; None when no place can be written to."""
    import numba
    import platformdirs

    here = Path(__file__).parent
    core = here.parents[1]
    digest = hashlib.sha256(numba.__version__.encode())
    # Kernels, and where their constants come from.
    constants = [here / "compiled.py", here / "parts.py", here / "tries.py", here.parent / "checks.py"]
    constants += [here.parent / "ggml" / name for name in ("codebook.py", "fp4.py", "neighbours.py")]
    for source in [*sorted(core.rglob("lanes_*.py")), *sorted(core.rglob("*_kernel.py")), *constants]:
        digest.update(source.read_bytes())
    base = os.environ.get("QUANTBENCH_KERNELS") or platformdirs.user_cache_dir("quantbench", appauthor=False)
    folder = Path(base) / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def kept(module: str, name: str) -> bool:
    """Whether a kernel of core/formats/fitting has been compiled before and lies on disk."""
    folder = _folder()
    return folder is not None and any(folder.glob(f"*/{module}.{name}-*.nbi"))


def watch(observer: Callable[[str, bool], None]) -> Callable[[], None]:
    """Calls observer(name, True) when a kernel begins to be compiled and observer(name, False) when it is done, in the
    thread that compiles; not for kernels loaded from disk. Calling what is returned ends it."""
    _observers.append(observer)
    return lambda: _observers.remove(observer)


@cache
def _listen() -> None:
    """Passes on numba's own news of our kernels; their helpers are compiled inside them and not spoken of."""
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc, unused-ignore]
        def on_start(self, told: Any) -> None:
            # It would look through a compiler's many objects again and again, for a tenth to a fifth of the time that
            # compiling takes, and find nothing. Most of them are garbage afterwards.
            collector.pause()
            _this_thread.compiling = _depth() + 1
            self.tell(told, True)

        def on_end(self, told: Any) -> None:
            _this_thread.compiling = _depth() - 1
            collector.resume(set_aside=False)
            self.tell(told, False)

        def tell(self, told: Any, begins: bool) -> None:
            function: Any = getattr(told.data.get("dispatcher"), "py_func", None)
            if getattr(function, "_kernel", False):
                for observer in tuple(_observers):
                    observer(function.__name__, begins)

    event.register("numba:compile", Listener())


def _depth() -> int:
    """How many compilations this thread is in, one inside the other."""
    return getattr(_this_thread, "compiling", 0)


def named(name: str) -> Callable[[Any], Any]:
    """For functions that are made inside others: gives each one the name that `helper` asks for.

    raises  ValueError where another one of this module has that name
    """

    def give(function: Any) -> Any:
        where = (function.__module__, name)
        if where in _names:
            raise ValueError(f"{name} of {function.__module__} exists: compiled code would mix the two up")
        _names.add(where)
        function.__qualname__ = name
        return function

    return give


def _require_own_name(function: Any) -> None:
    if "<locals>" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} needs a name of its own: @named")


def helper(function: Any) -> Any:
    """Compiled as a part of the kernels that call it, for them alone: what Python would need to call it is left out,
    which takes a tenth of the time.

    raises  ValueError for a function made inside another without `named`
    """
    import numba

    from core.formats.fitting.parts import PartCompiler

    _require_own_name(function)
    compiled: Any = numba.njit  # its signature leaves these out
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": PartCompiler}
    dispatcher = compiled(nogil=True, error_model="numpy", **options)(function)
    # numba would compile it for every constant that it is called with.
    for_types = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: for_types(
        tuple(numba.types.unliteral(a) for a in args), {k: numba.types.unliteral(a) for k, a in kws.items()}
    )
    return dispatcher


def inlined(function: Any) -> Any:
    """Copied into its caller, so that the shapes of scratch arrays made there are known: without them LLVM cannot tell
    rows of scratch apart, and does not vectorise."""
    import numba

    _require_own_name(function)
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)


def kernel(function: Any) -> Any:
    """Compiled at the first call, loaded from disk afterwards."""
    from core.formats.fitting.parts import WholeCompiler

    return _kernel(function, WholeCompiler)


def vector_kernel(function: Any) -> Any:
    """The same where the inner loops are written with lanes_vector.py: LLVM need not look for vectors itself, which
    takes it a third of its time."""
    from core.formats.fitting.parts import VectorCompiler

    return _kernel(function, VectorCompiler)


def _kernel(function: Any, pipeline: Any) -> Any:
    import numba

    _require_own_name(function)
    _listen()
    function._kernel = True
    folder = _folder()
    config: Any = numba.config
    # numba looks the folder up while decorating; modules of kernels may be imported by several threads at once.
    with _decorating:
        before = config.CACHE_DIR
        try:
            if folder is not None:
                config.CACHE_DIR = str(folder)
            compiled: Any = numba.njit
            options = {"no_cfunc_wrapper": True, "pipeline_class": pipeline}
            made = compiled(nogil=True, error_model="numpy", cache=folder is not None, **options)(function)
        finally:
            config.CACHE_DIR = before
    load = made._cache.load_overload

    def load_quietly(*args: Any) -> Any:
        collector.pause()
        found = None
        try:
            found = load(*args)
        finally:
            # Not for a part that is loaded while its kernel is compiled: the compiler's garbage is not to be kept.
            collector.resume(set_aside=found is not None and not _depth())
        return found

    made._cache.load_overload = load_quietly
    return made

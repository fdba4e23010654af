"""How numba makes kernels and their helpers here, where its own way takes several times as long for the same code.

A helper is a *part*: it is typed and lowered, and left to the kernels that call it as it is. By itself numba would
optimise and translate each helper, with all that it calls, once for every step between it and a kernel. And where an
argument is not None, branches on `argument is None` are left out before they are typed, as numba does where it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

from llvmlite.binding import Linkage
from numba.core import types
from numba.core.analysis import dead_branch_prune
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    FixupArgs,
    GenericRewrites,
    InlineInlinables,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)


class _Given:
    """Stands for the type of an argument that is something."""

    literal_type = types.boolean


@register_pass(mutates_CFG=True, analysis_only=False)
class PruneGiven(FunctionPass):  # type: ignore[misc, unused-ignore]
    """Leaves out what is for None alone."""

    _name = "prune_given"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        maybe = (types.NoneType, types.Optional, types.Omitted)
        dead_branch_prune(state.func_ir, [a if isinstance(a, maybe) else _Given for a in state.args])
        return True


class _Codegen:
    """A code generator that leaves environments of helpers alone: they have no place in memory, and no use."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def set_env(self, _name: str, _env: Any) -> None:
        pass


class _Library(JITCodeLibrary):  # type: ignore[misc, unused-ignore]
    def _optimize_functions(self, module: Any) -> None:
        """Only what numba does beside it: all is optimised when it is together."""
        module.data_layout = self._codegen._data_layout


class Part(_Library):
    """A helper's code, to be linked into a kernel's."""

    @property
    def codegen(self) -> Any:
        return _Codegen(self._codegen)

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, _name: str) -> int:
        return 0

    def linked(self) -> Any:
        """All that it needs, itself included."""
        yield self
        for library in self._linking_libraries:
            if isinstance(library, Part):
                yield from library.linked()
            else:
                yield library


class Whole(_Library):
    """A kernel's code."""

    def add_linking_library(self, library: Any) -> None:
        for needed in library.linked() if isinstance(library, Part) else (library,):
            if needed not in self._linking_libraries:
                super().add_linking_library(needed)

    # Whether LLVM looks for loops that it can make vectors of.
    loops = True

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            # No other kernel needs this one's copy: what is called once is inlined, what is left over left out.
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal
        passes, builder = self._codegen._module_pass_manager(loop_vectorize=self.loops, slp_vectorize=False)
        passes.run(self._final_module, builder)


class OfVectors(Whole):
    """A kernel's code that is made of vectors already."""

    loops = False


# What kernels are written without: closures, generators, with, literally, arrays as a whole in one expression.
_PASSES = (
    (TranslateByteCode, "analyzing bytecode"),
    (FixupArgs, "fix up args"),
    (IRProcessing, "processing IR"),
    (PruneGiven, "dead branch pruning"),
    (GenericRewrites, "nopython rewrites"),
    (InlineInlinables, "inline inlinable functions"),
    (ReconstructSSA, "ssa"),
    (NopythonTypeInference, "nopython frontend"),
    (PreLowerStripPhis, "remove phis nodes"),
    (IRLegalization, "ensure IR is legal prior to lowering"),
    (NativeLowering, "native lowering"),
    (NoPythonBackend, "nopython mode backend"),
)


class _Typing:
    """numba's typing context, which looks up what a function makes of arguments of some types once, and not at every
    place that calls it and in every round of inference."""

    found: ClassVar[dict[Any, Any]] = {}

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, args: Any, kws: Any) -> Any:
        key = function, args, tuple(kws.items())
        if key not in self.found:
            self.found[key] = self._context.resolve_function_type(function, args, kws)
        return self.found[key]


def _pipeline(compiler: Any, library: type[Any]) -> list[Any]:
    state = compiler.state
    state.typingctx = _Typing(state.typingctx)
    state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
    state.library.enable_object_caching()
    passes = PassManager("lanes")
    for step, what in _PASSES:
        passes.add_pass(step, what)
    passes.finalize()
    return [passes]


class PartCompiler(CompilerBase):  # type: ignore[misc, unused-ignore]
    def define_pipelines(self) -> list[Any]:
        return _pipeline(self, Part)


class WholeCompiler(CompilerBase):  # type: ignore[misc, unused-ignore]
    def define_pipelines(self) -> list[Any]:
        return _pipeline(self, Whole)


class VectorCompiler(CompilerBase):  # type: ignore[misc, unused-ignore]
    def define_pipelines(self) -> list[Any]:
        return _pipeline(self, OfVectors)

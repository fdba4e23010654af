"""Arrays inside kernels, by a few instructions each: numba compiles several functions for every np.empty, reshape and
view. What is made here starts where a cache line does, so that no row of lanes lies across two."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

LINE = 64
# Without the signature of intrinsic, which type checkers take for the caller's.
_primitive: Any = intrinsic


def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    kind = sig.return_type
    shape = [context.cast(builder, a, k, types.intp) for a, k in zip(args[1:], sig.args[1:], strict=True)]
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    strides = [context.get_constant(types.intp, size)]
    for n in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], n))
    # Raises MemoryError where there is none.
    memory = context.nrt.meminfo_alloc_aligned(builder, builder.mul(strides[0], shape[0]), LINE)
    data = builder.bitcast(context.nrt.meminfo_data(builder, memory), context.get_data_type(kind.dtype).as_pointer())
    made = make_array(kind)(context, builder)
    populate_array(made, data=data, shape=shape, strides=strides, itemsize=size, meminfo=memory)
    return made._getvalue()


@_primitive
def empty(_typing: Any, kind: Any, n: Any) -> Any:
    """np.empty(n, kind)."""
    return types.Array(kind.dtype, 1, "C")(kind, n), _lower


@_primitive
def empty_rows(_typing: Any, kind: Any, n: Any, m: Any) -> Any:
    """np.empty((n, m), kind)."""
    return types.Array(kind.dtype, 2, "C")(kind, n, m), _lower


@_primitive
def zeros_rows(_typing: Any, kind: Any, n: Any, m: Any) -> Any:
    """np.zeros((n, m), kind)."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = _lower(context, builder, sig, args)
        made = make_array(sig.return_type)(context, builder, array)
        cgutils.memset(builder, made.data, builder.mul(made.nitems, made.itemsize), 0)
        return array

    return types.Array(kind.dtype, 2, "C")(kind, n, m), lower


@_primitive
def flattened(_typing: Any, array: Any) -> Any:
    """array.reshape(-1) of a contiguous one."""
    if not isinstance(array, types.Array) or array.layout != "C":
        return None
    kind = array.copy(ndim=1)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, made = make_array(array)(context, builder, args[0]), make_array(kind)(context, builder)
        populate_array(
            made,
            data=given.data,
            shape=[given.nitems],
            strides=[given.itemsize],
            itemsize=given.itemsize,
            meminfo=given.meminfo,
            parent=given.parent,
        )
        return impl_ret_borrowed(context, builder, kind, made._getvalue())

    return kind(array), lower


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to the first element of an array."""
    model = context.data_model_manager[kind]
    return builder.extract_value(array, model.get_field_position("data"))


def place(context: Any, builder: Any, kind: Any, array: Any, at: Any, vector: Any) -> Any:
    """Pointer to a `vector` that starts at element `at` of an array."""
    return builder.bitcast(builder.gep(data_of(context, builder, kind, array), [at]), vector.as_pointer())

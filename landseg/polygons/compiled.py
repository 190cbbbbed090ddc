"""How the loops of this package are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function to machine code on its first call, and keep that on disk for later processes.

    It runs without the GIL, so that a pool of threads runs several at a time. Where the package's own folder can't be
    written to, Numba keeps its cache in the user's.
    """
    return cast(Function, numba.njit(cache=True, nogil=True)(function))

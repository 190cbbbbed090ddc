"""How the loops of this package are compiled."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)


def kernel(function: Function) -> Function:
    """Compile a function to machine code on its first call, and keep that on disk for later processes.

    It runs without the GIL, so that a pool of threads runs several at a time. Where the package's own folder can't be
    written to, Numba keeps its cache in the user's; where there is none either, as for system accounts, it keeps none.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        _tell_once()
        return cast(Function, numba.njit(nogil=True)(function))


@cache
def _tell_once() -> None:
    log.warning(
        "no folder to keep compiled loops in: they are compiled in each process anew; "
        "set NUMBA_CACHE_DIR to one that can be written to"
    )

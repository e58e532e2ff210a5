"""Who may be told that a proxy is of its target's class, and who has to know that it is not.

PyTorch's C code asks ``isinstance`` and then takes the object's memory for a tensor's: a proxy that said it
was one would crash the process (``torch.as_tensor(p)``, ``tensor.grad = p``). So a proxy of such an object
has the object's class for Python code that asks for it, and its own for C code.
"""

from __future__ import annotations

import dis
import functools
import sys
import types

__all__ = ["LAID_BARE", "asks_in_python", "indexes", "is_laid_bare"]

LAID_BARE: set[type] = set()
"""Classes of which `is_laid_bare` was true."""

_ASKING = frozenset({"isinstance", "getattr", "hasattr", "_abc_instancecheck"})  # functions that do no more
_HOOKS = frozenset({"__instancecheck__", "__subclasscheck__"})  # which ask for somebody else
_INDEXING = frozenset({"__getitem__", "__setitem__", "__delitem__", "getitem", "setitem"})


def is_laid_bare(kind: type) -> bool:
    """Whether C code reads the memory of objects for which ``isinstance`` of this class is true."""
    if "torch" not in sys.modules or kind.__module__ == "builtins":
        return False
    if any(str(base.__module__).startswith("torch._C") for base in kind.__mro__):
        LAID_BARE.add(kind)
        return True
    return False


@functools.lru_cache(1024)
def asks_in_python(code: types.CodeType, at: int) -> bool:
    """Whether the instruction of some code that is being run asks what class an object has, and no more.

    In doubt it does not: who is told that a proxy is a proxy can only be mistaken.

    Args:
        code: of the frame that asks.
        at: the instruction's offset, the frame's ``f_lasti``.
    """
    name, called = _asked(code, at)
    if called:
        return name in _ASKING or code.co_name in _HOOKS
    return name in ("LOAD_ATTR __class__", "LOAD_METHOD __class__", "MATCH_CLASS")


@functools.lru_cache(1024)
def indexes(code: types.CodeType, at: int) -> bool:
    """Whether that instruction takes, sets or deletes an item. Arguments as above."""
    name, called = _asked(code, at)
    return name in _INDEXING if called else name.endswith("_SUBSCR")


def _asked(code: types.CodeType, at: int) -> tuple[str, bool]:
    """What is called, and true; or what else is done, and false."""
    before: list[dis.Instruction] = []
    for asking in dis.get_instructions(code):
        if asking.offset >= at:
            break
        before.append(asking)
    else:
        return "", False
    if asking.opname in ("CALL", "PRECALL"):
        return _callee(before, asking.arg or 0), True
    return f"{asking.opname} {asking.argval}" if asking.opname.startswith("LOAD_") else asking.opname, False


def _callee(before: list[dis.Instruction], count: int) -> str:
    """The name of what is called with so many arguments after these instructions, if it has one."""
    if before and before[-1].opname == "PRECALL":
        before.pop()
    while before:
        instruction = before.pop()
        if count <= 0 and instruction.opname != "PUSH_NULL":
            return str(instruction.argval) if instruction.opname.startswith("LOAD_") else ""
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            return ""  # an argument that is one of two
        if count > 0:
            count -= dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
    return ""

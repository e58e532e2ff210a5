"""Everyday idioms on proxies: the plain values' result, or an error, or listed here as different.

An idiom is Python source over the names of `values()`. It is an expression, or statements that
assign ``r``. Each runs on the plain values, on unresolved and on resolved proxies of them.
"""

# ruff: noqa: F401, DTZ001, ICN001 (the idioms use the imports; naive dates are an everyday idiom)

from __future__ import annotations

import ast
import asyncio
import base64
import bisect
import collections
import collections.abc
import contextlib
import copy
import csv
import datetime
import decimal
import fractions
import functools
import hashlib
import heapq
import inspect
import io
import itertools
import json
import math
import numbers
import operator
import os
import pathlib
import pickle
import pprint
import random
import re
import sqlite3
import statistics
import string
import struct
import sys
import textwrap
import urllib.parse
import uuid
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from proxystore_core.proxy import Proxy, extract, is_resolved, resolve


@dataclass(order=True)
class Point:
    x: int
    y: int = 2

    @property
    def norm(self) -> float:
        return math.hypot(self.x, self.y)

    def moved(self, by: int) -> Point:
        return Point(self.x + by, self.y + by)


class Scope:
    def __enter__(self) -> str:
        return "inside"

    def __exit__(self, *error: object) -> bool:
        return True


def double(value: Any, *, offset: int = 0) -> Any:
    """Twice the value."""
    return value * 2 + offset


def values() -> dict[str, Any]:
    table = pd.DataFrame({"a": [1, 2, 3], "b": [4.0, 5.0, 6.0], "c": ["x", "y", "x"]})
    return {
        "n": 7,
        "one": 1,
        "x": 2.5,
        "z": 1 + 2j,
        "yes": True,
        "s": "hello world",
        "word": "hello",
        "template": "%s-%s",
        "numeral": "12",
        "b": b"hello",
        "l": [3, 1, 2],
        "words": ["a", "b"],
        "t": (1, 2),
        "d": {"a": 1, "b": 2},
        "key": "a",
        "st": {1, 2},
        "cut": slice(1, 3),
        "a": np.arange(6.0),
        "i": np.array([2, 0, 1]),
        "m": np.arange(6).reshape(2, 3),
        "mask": np.array([True, False, True, False, True, False]),
        "ma": np.ma.array([1, 2, 3], mask=[False, True, False]),
        "sparse": scipy.sparse.csr_matrix(np.eye(3)),
        "f32": np.float32(1.5),
        "df": table,
        "ser": table["b"],
        "col": "a",
        "cols": ["a", "b"],
        "point": Point(1),
        "fn": double,
        "cls": int,
        "path": pathlib.PurePosixPath("folder/file.txt"),
        "when": datetime.datetime(2024, 5, 6, 7, 8),
        "span": datetime.timedelta(days=1),
        "dec": decimal.Decimal("1.50"),
        "frac": fractions.Fraction(1, 3),
        "scope": Scope(),
        "bag": SimpleNamespace(v=1),
        "ba": bytearray(b"abc"),
        "devnull": os.devnull,
    }


NAMES = {**globals(), "extract": lambda value: extract(value) if type(value) is Proxy else value}


def run(source: str, given: dict[str, Any]) -> Any:
    scope = {**NAMES, **given}
    try:
        code = compile(source, "<idiom>", "eval")
    except SyntaxError:
        exec(source, scope)
        return scope["r"]
    return eval(code, scope)


def returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def proxies(resolved: bool) -> dict[str, Any]:
    given: dict[str, Any] = {name: Proxy(returning(value)) for name, value in values().items()}
    if resolved:
        for proxy in given.values():
            resolve(proxy)
    return given


def plain(value: Any) -> Any:
    value = extract(value) if type(value) is Proxy else value
    if type(value) in (list, tuple, set):
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {plain(name): plain(item) for name, item in value.items()}
    return value


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(got, expected)
    elif isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(got, expected)
    elif isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        if isinstance(expected, np.ma.MaskedArray):
            np.testing.assert_array_equal(got.mask, expected.mask)
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


IDIOMS = r"""
n + 1 || 1 + n || n - 1 || 10 - n || n * 2 || n / 2 || 1 / n || n // 2 || n % 4 || 100 % n || n ** 2
2 ** n || -n || +n || ~n || abs(-n) || divmod(n, 2) || divmod(20, n) || pow(n, 2, 5) || n << 1 || n >> 1
n & 3 || n | 8 || n ^ 1 || 1 << n || n + n || n == 7 || n != 7 || n < 8 || n >= 7 || 6 < n <= 7 || n == n
bool(n) || not n || n and 1 || int(n) || float(n) || complex(n) || hex(n) || bin(n) || chr(n + 60)
round(x) || round(x, 1) || round(x, one) || math.floor(x) || math.ceil(x) || math.trunc(x) || math.sqrt(x)
math.gcd(n, 21) || math.comb(n, 2) || math.isclose(x, 2.5) || math.hypot(n, x) || sum([n, n]) || max(n, 3)
min(n, x) || range(n) || list(range(one, n)) || [0] * one || 'ab' * one || n.bit_length() || n.real
z.conjugate() || z * z || abs(z) || isinstance(n, int) || isinstance(n, numbers.Integral)
isinstance(n, str) || isinstance(1, cls) || isinstance(x, (int, float)) || issubclass(cls, int)
issubclass(bool, cls) || cls('5') || cls is not None || n.__class__ || yes + 1 || x.is_integer()
x.as_integer_ratio() || operator.index(n) || operator.add(n, n) || int(numeral) || float(numeral)
statistics.mean(l) || statistics.median(l) || statistics.stdev(l) || random.Random(1).choice(l)
random.Random(n).random() || random.Random(3).sample(l, 2) || random.Random(1).randint(one, n)
fractions.Fraction(1, 2) + frac || frac * 3 || dec + 1 || dec.quantize(decimal.Decimal('1.0'))
decimal.Decimal(1) + dec || when + span || when - span || when.isoformat() || when.strftime('%Y-%m')
datetime.datetime(2024, 1, 1) + span || span * 2 || when > datetime.datetime(2020, 1, 1) || f'{n}'
f'{x:.2f}' || f'{s:>20}' || f'{n:05d}' || f'{when:%Y}' || '{:.1f}'.format(x) || '{0[a]}'.format(d)
'%d' % n || '%.2f' % x || '%s' % s || '%s and %s' % (s, n) || template % t || '%(a)s' % d
format(x, '.3f') || str(n) || str(s) || s + '!' || '>' + s || s * 2 || s + s || s[0] || s[1:3] || s[cut]
s[-one] || len(s) || 'o' in s || word in s || s.upper() || s.split() || s.replace('l', 'L')
s.startswith('he') || s.encode() || s.title().center(20) || s == word || sorted(s) || list(s) || set(s)
reversed(word) and ''.join(reversed(word)) || ''.join(words) || ', '.join(words) || s.find('w')
s.join(['1', '2']) || s.format() || s.isalpha() || s.partition(' ') || textwrap.shorten('a b', n)
string.capwords('a b', ' ') || string.Template('$a').substitute(d) || urllib.parse.quote('a b')
ast.literal_eval(numeral) || uuid.UUID(int=n) || b + b'!' || b[0] || b[1:] || b.decode() || list(b)
bytes(b) || b == b'hello' || b'l' in b || len(b) || b.hex() || int.from_bytes(b, 'big')
bytes(n) || bytearray(n) || b.split(b'l') || b'>' + b || bytes(ba) || ba + b'x' || struct.pack('>i', n)
struct.pack('>d', x) || l[0] || l[-1] || l[1:] || l[cut] || l[one] || [1, 2, 3][one] || len(l) || 1 in l
list(l) || tuple(l) || set(l) || frozenset(l) || sorted(l) || sorted(l, reverse=True) || min(l) || max(l)
sum(l) || any(l) || all(l) || l + [4] || [0] + l || l * 2 || l + l || l == [3, 1, 2] || l.index(2)
l.count(1) || l.copy() || [v * 2 for v in l] || list(enumerate(l)) || list(zip(l, t)) || list(map(str, l))
list(filter(None, l)) || list(reversed(l)) || [*l, *t] || next(iter(l)) || l < [4] || [4] > l
dict(zip(words, l)) || list(itertools.chain(l, t)) || list(itertools.islice(l, 2))
list(itertools.product(l, repeat=2)) || functools.reduce(operator.add, l) || list(itertools.accumulate(l))
list(itertools.combinations(l, 2)) || list(itertools.repeat(1, n)) || list(itertools.islice(l, one))
operator.itemgetter(0)(l) || operator.itemgetter(one)([1, 2]) || heapq.nlargest(2, l)
heapq.merge(l, t) and list(heapq.merge(l, t)) || bisect.bisect([1, 5, 9], n) || collections.Counter(l)
collections.deque(l) || isinstance(l, list) || isinstance(l, collections.abc.Sequence)
isinstance(d, collections.abc.Mapping) || isinstance(n, collections.abc.Iterator) || inspect.isclass(l)
copy.copy(l) || copy.deepcopy(d) || io.StringIO().writelines(words) || str.join('-', words)
hash(t) == hash(t) || t + (3,) || t[0] || (0,) + t || t == (1, 2) || len(t) || list(t) || t < (2,)
max(t, (0, 9)) || (lambda a, b: a + b)(*t) || print(n, file=io.StringIO()) || 'abcdef'.find('c', one)
'abc'[one] || b'abc'[one] || 'abc'.zfill(n) || 'abc'.ljust(n) || d['a'] || d[key] || d.get('a')
d.get('q', 0) || 'a' in d || key in d || len(d) || list(d) || list(d.items()) || sorted(d) || dict(d)
{**d} || dict(**d) || d | {'z': 0} || {'z': 0} | d || d == {'a': 1, 'b': 2} || d.keys() & {'a'}
{v: k for k, v in d.items()} || d.copy() || max(d, key=d.get) || json.dumps(dict(d))
collections.ChainMap(d, {})['a'] || collections.OrderedDict(d) || collections.defaultdict(int, d)
'{a}'.format(**d) || '{a}'.format_map(d) || (lambda a, b: a - b)(**d) || list(reversed(d))
types_of(d) == {int} || st & {1} || {1, 9} & st || st - {1} || {1, 9} - st || st ^ {1} || st <= {1, 2, 3}
{1} <= st || {1}.issubset(st) || st == {1, 2} || {5}.union(st) || {1, 5}.intersection(st) || 1 in st
sorted(st) || len(st) || st.isdisjoint({9}) || point.x || point.norm || point.moved(2) || point == Point(1)
Point(1) == point || point < Point(2) || [f.name for f in fields(point)] || vars(point)
getattr(point, 'x') || hasattr(point, 'q') || getattr(point, 'q', 0) || sorted([point, Point(0)])
point.__dict__ || dir(point) == dir(Point(1)) || isinstance(point, Point) || bag.v
operator.attrgetter('x')(point) || fn(2) || fn(n, offset=1) || fn.__name__ || list(map(fn, [1, 2]))
functools.partial(fn, offset=1)(2) || fn.__doc__ || fn.__module__ || inspect.signature(fn) || callable(fn)
functools.wraps(fn)(lambda: 0).__name__ || inspect.isfunction(fn) || sorted([2, 1], key=fn) || path.name
path / 'sub' || pathlib.PurePosixPath('root') / path || os.path.join('root', path) || os.fspath(path)
os.path.basename(s) || pathlib.PurePosixPath(s) || os.path.splitext(path) || os.path.join(s, 'x') || a + 1
1 + a || a * a || a @ a || m @ m.T || m.T || a[0] || a[1:3] || a[cut] || a[i] || np.arange(6.0)[i]
a[mask] || m[:, 0] || m[0, 1] || m[one, one] || np.arange(6)[n - 6] || a > 2 || a == a || -a || a ** 2
a.sum() || a.mean(axis=0) || a.shape || a.dtype || a.reshape(2, 3) || a.astype('f4') || a.tolist() || len(a)
list(a) || 3.0 in a || np.asarray(a) || np.array(a) || np.asarray(l) || np.array([n, n]) || np.asarray(n)
np.asarray(s) || np.asarray(b) || np.array([l, l]) || np.array([a, a]) || np.asarray(a, dtype='i8')
np.asanyarray(ma) || np.asarray(ma) || ma + 1 || ma.filled(0) || np.ma.sum(ma) || np.sqrt(a) || np.add(a, a)
np.add(1, n) || np.add(l, l) || np.add.reduce(a) || np.multiply.outer(a, a) || np.concatenate([a, a])
np.stack((a, a)) || np.vstack([m, m]) || np.where(mask, a, 0) || np.sum(a) || np.mean(l) || np.sort(i)
np.argsort(i) || np.dot(a, a) || np.linalg.norm(a) || np.linalg.lstsq(m, np.ones(2), rcond=None)[0]
np.fft.fft(a) || np.einsum('ij->i', m) || np.isclose(a, a) || np.allclose(a, a)
np.array_equal(a, np.arange(6.0)) || np.clip(a, one, n) || np.broadcast_to(a, (2, 6)) || np.zeros(n)
np.zeros(t) || np.full(2, n) || np.linspace(0, n, 3) || np.reshape(a, (3, 2)) || np.zeros((n, one))
np.ones_like(a) || np.take(a, i) || np.isin(a, l) || np.histogram(a, bins=n)
np.random.default_rng(0).permutation(a) || np.nan_to_num(a) || np.unique(l) || np.savetxt(io.StringIO(), m)
np.arange(6.0) + a || np.arange(6.0) * n || np.eye(3) @ sparse || sparse @ np.eye(3)
(sparse @ sparse).toarray() || f32 + 1 || np.float32(1) + f32 || np.arange(n)
np.frombuffer(bytes(ba), 'u1') || np.sum(a, axis=0, keepdims=True) || np.percentile(a, 50)
np.vectorize(abs)(a) || a.dot(a) || np.pad(a, one) || np.tile(l, 2) || np.repeat(a, one)
np.arange(6).reshape(t + (3,)) || isinstance(a, np.ndarray) || np.ndim(a) || np.shape(l) || np.size(a)
np.maximum(a, n) || np.power(a, x) || np.interp(x, a, a) || np.trapezoid(a) || np.searchsorted(a, x)
np.meshgrid(l, t) || np.column_stack([a, a]) || df['a'] || df[col] || df[cols] || df.loc[0, col] || df.a
df.head(2) || df[df.a > 1] || df[df[col] > one] || len(df) || list(df) || df.shape || df.describe()
df.groupby('c').sum(numeric_only=True) || df.merge(df, on='a') || pd.merge(df, df, on='a')
pd.concat([df, df]) || pd.concat([ser, ser], axis=1) || pd.DataFrame(df) || pd.DataFrame(d, index=[0])
pd.DataFrame(m) || pd.DataFrame(l) || pd.Series(l) || pd.Series(ser) || pd.Series(a) || pd.Series(d)
ser + 1 || 1 + ser || ser * ser || ser + n || ser.mean() || ser[0] || ser[ser > 4] || ser.to_numpy()
np.log(ser) || ser > x || df.assign(q=ser) || df.drop(columns=col) || df.to_dict() || df.to_csv()
df.iloc[one] || df.iloc[cut] || df.apply(len) || ser.map(str) || df.join(ser.rename('q'))
df.rename(columns={'a': 'q'}) || pd.isna(ser) || pd.to_numeric(ser) || df.equals(df) || df == df
pd.cut(ser, 2) || ser.isin(l) || df.query('a > 1') || isinstance(df, pd.DataFrame)
pd.DataFrame({'v': ser}) || pd.DataFrame({'v': a}) || pd.DataFrame({'v': l}) || pd.get_dummies(df)
pd.crosstab(df.a, df.c) || df.to_json() || ser.rolling(n - 5).sum() || m[t]
df.pivot_table(index='c', values='a') || os.environ.get(s, 1) || sorted(words, reverse=yes) || st | {3}
{3} | st
"""

STATEMENTS = [
    "with open(devnull) as file: r = file.read()",
    "n += 1; r = n",
    "x *= 2; r = x",
    "s += '!'; r = s",
    "l += [4]; r = l",
    "l += t; r = l",
    "l *= 2; r = l",
    "st |= {5}; r = st",
    "st -= {1}; r = st",
    "d |= {'z': 1}; r = d",
    "a += 1; r = a",
    "a[:] = 0; r = extract(a)",
    "a[i] = 9; r = extract(a)",
    "a[0] += 5; r = extract(a)",
    "view = a; view -= 1; r = extract(a)",
    "m //= 2; r = m",
    "np.copyto(a, np.ones(6)); r = extract(a)",
    "np.add(a, 1, out=a); r = extract(a)",
    "out = np.zeros(6); np.multiply(a, 2, out=out); r = out",
    "out = np.zeros(6); out[:] = a; r = out",
    "out = np.zeros(6); out += a; r = out",
    "out = [0]; out += l; r = out",
    "out = [0]; out[1:] = l; r = out",
    "out = [0]; out.extend(l); r = out",
    "out = {}; out.update(d); r = out",
    "out = {}; out |= d; r = out",
    "out = set(); out.update(st); r = out",
    "l.append(5); r = extract(l)",
    "l.sort(); r = extract(l)",
    "del l[0]; r = extract(l)",
    "l[one] = 8; r = extract(l)",
    "random.Random(1).shuffle(l); r = extract(l)",
    "d['q'] = 1; r = extract(d)",
    "d[key] = 5; r = extract(d)",
    "del d['a']; r = extract(d)",
    "d.setdefault('w', []).append(1); r = extract(d)",
    "q, w = t; r = (q, w)",
    "first, *rest = l; r = (first, rest)",
    "r = 0\nfor v in l: r += v",
    "r = []\nfor name, v in d.items(): r.append((name, v))",
    "r = 0\nwhile n > r: r += 1",
    "with scope as inside: r = inside",
    "r = 0\nwith scope:\n    r = 1\n    raise ValueError",
    "point.x = 9; r = extract(point)",
    "setattr(point, 'extra', 1); r = vars(point)",
    "bag.w = 2; del bag.v; r = vars(bag)",
    "df['new'] = ser; r = extract(df)",
    "df.loc[0, 'a'] = 9; r = extract(df)",
    "df['new'] = a[:3]; r = extract(df)",
    "other = pd.DataFrame({'v': [1, 2, 3]}); other['w'] = ser; r = other",
    "match n:\n    case 7: r = 'seven'\n    case _: r = 'other'",
    "match n:\n    case str(): r = 'text'\n    case int(): r = 'number'",
    "match point:\n    case Point(1, y): r = y\n    case _: r = None",
    "out = io.StringIO(); csv.writer(out).writerow(l); r = out.getvalue()",
    "out = io.StringIO(); print(s, n, file=out, sep='-'); r = out.getvalue()",
    "db = sqlite3.connect(':memory:'); r = db.execute('select ? + ?', (n, n)).fetchone(); db.close()",
    "db = sqlite3.connect(':memory:'); r = db.execute('select ?', (s,)).fetchone(); db.close()",
    "db = sqlite3.connect(':memory:'); r = db.execute('select ?', t[:1]).fetchone(); db.close()",
    "class Mine(cls): pass\nr = Mine(3) + 1",
    "try:\n    l[99]\nexcept IndexError as error: r = str(error)",
    "try:\n    d['none']\nexcept KeyError as error: r = str(error)",
    "try:\n    point.none\nexcept AttributeError as error: r = str(error)",
    "async def get():\n    return 1\nr = asyncio.run(get()) + n",
    "assert n; r = 1 if l else 2",
    "r = n if n > 5 else -n",
    "r = json.dumps({'v': n}, default=extract)",
]


def types_of(mapping: Any) -> set[type]:
    return {type(value) for value in mapping.values()}


NAMES["types_of"] = types_of

WORKING = [*(idiom for line in IDIOMS.split("\n") for idiom in line.split(" || ") if idiom), *STATEMENTS]

# The target's own hash is known once the target is: these need a proxy resolved before its first hash.
BY_HASH = ["{'a': 1}[key]", "n in {7, 8}", "{n, 7} == {7}", "{n: 1}.get(7)", "{'a', 'b'} - {key}"]

# repr never loads, by design: neither does a log line or an engine's debug message.
BY_REPR = ["repr(l)", "f'{n!r}'", "ascii(s)", "pprint.pformat(d)", "f'{[n]}'"]

# C code that wants a buffer: a class can lend one from Python 3.12 on.
BY_BUFFER = [
    "memoryview(ba).tolist()",
    "bytes(memoryview(a))",
    "io.BytesIO(b).read()",
    "hashlib.sha256(b).hexdigest()",
    "zlib.crc32(b)",
    "base64.b64encode(b)",
    "b''.join([b, b])",
    "np.frombuffer(b, 'u1')",
    "struct.unpack('>5s', b)",
    "str(b, 'utf-8')",
]

# C code that checks the exact type: an error, and extract(p) is the remedy.
REFUSED = [
    "memoryview(b).tolist()",
    "json.dumps(n)",
    "json.dumps({'v': l})",
    "json.loads(s)",
    "''.join([s])",
    "re.match('h', s)",
    "re.sub('h', s, 'hah')",
    "re.compile(s)",
    "s in 'hello world and more'",
    "'abc'.startswith(key)",
    "'abc'.replace(key, 'b')",
    "'a b'.split(s)",
    "'abc'.find(key)",
    "getattr(1, s)",
    "eval(numeral)",
    "int(numeral, 8)",
    "decimal.Decimal(numeral)",
    "fractions.Fraction(numeral)",
    "datetime.datetime.fromisoformat(s)",
    "datetime.datetime(2024, 1, 1).strftime(s)",
    "range(10)[cut]",
    "[1, 2, 3][cut]",
    "np.arange(6)[cut]",
    "collections.deque(l, maxlen=one)",
    "heapq.heappush(l, 1)",
    "asdict(point)",
    "replace(point, x=5)",
    "next(iter_of)",
    "os.path.exists(s)",
    "np.zeros(2, dtype=s)",
    "np.random.default_rng(n)",
    "np.arange(3.0).sum(out=a)",
    "df.groupby(col).size()",
    "df.sort_values(col)",
    "df.set_index(col)",
    "df[['a']] * n",
    "df.__setitem__('new', n)",
    "list.append(l, 1)",
    "str.upper(s)",
    "dict.get(d, 'a')",
    "pow(2, n, 5)",
    "os.fsencode(n)",
]

# Different without an error. Python asks the type, and there is nothing to hook: use extract(p).
DIFFERENT = {
    "type(n) is int": False,
    "nothing is None": False,
    "yes is True": False,
    "callable(n)": True,
    "isinstance(n, collections.abc.Iterable)": True,
    "'%s' % pair": "(1,)",
    "np.arange(9).reshape(3, 3)[t].shape": (2, 3),
    "r = 'no'\nmatch l:\n    case [_, _, _]: r = 'list'": "no",
    "r = 'no'\nmatch d:\n    case {'a': _}: r = 'dict'": "no",
    "alias = out = {1}; out |= st; r = alias": {1},
}


@pytest.mark.parametrize("resolved", [False, True], ids=["unresolved", "resolved"])
@pytest.mark.parametrize("idiom", WORKING)
def test_same_result(idiom: str, resolved: bool) -> None:
    expected = run(idiom, values())
    got = run(idiom, proxies(resolved))
    assert_same(plain(got), plain(expected))


@pytest.mark.parametrize("idiom", [*BY_HASH, *BY_REPR])
def test_same_result_once_resolved(idiom: str) -> None:
    expected = run(idiom, values())
    assert_same(plain(run(idiom, proxies(resolved=True))), plain(expected))
    given = proxies(resolved=False)
    try:
        different = run(idiom, given)
    except KeyError:
        different = None
    assert not any(map(is_resolved, given.values()))
    assert different != expected


@pytest.mark.parametrize("resolved", [False, True], ids=["unresolved", "resolved"])
@pytest.mark.parametrize("idiom", BY_BUFFER)
def test_buffer(idiom: str, resolved: bool) -> None:
    expected = run(idiom, values())
    if sys.version_info >= (3, 12):
        assert_same(run(idiom, proxies(resolved)), expected)
    else:
        with pytest.raises(TypeError):
            run(idiom, proxies(resolved))


@pytest.mark.parametrize("resolved", [False, True], ids=["unresolved", "resolved"])
@pytest.mark.parametrize("idiom", REFUSED)
def test_refused_rather_than_different(idiom: str, resolved: bool) -> None:
    with pytest.raises((TypeError, KeyError, IndexError, ValueError, BufferError)):
        run(idiom, proxies(resolved) | {"iter_of": Proxy(lambda: iter([1]))})


@pytest.mark.parametrize("resolved", [False, True], ids=["unresolved", "resolved"])
def test_bytearray_of_bytes(resolved: bool) -> None:
    """It asks for a buffer as NumPy does, which must not get one; before 3.12 it iterates instead."""
    if sys.version_info >= (3, 12):
        with pytest.raises(BufferError, match="extract"):
            run("bytearray(b)", proxies(resolved))
    else:
        assert run("bytearray(b)", proxies(resolved)) == bytearray(values()["b"])


@pytest.mark.parametrize("idiom", DIFFERENT)
def test_known_difference(idiom: str) -> None:
    extra = {"nothing": None, "pair": (1,)}
    expected = run(idiom, values() | extra)
    given = proxies(resolved=True) | {name: Proxy(returning(value)) for name, value in extra.items()}
    got = run(idiom, given)
    assert got == DIFFERENT[idiom]
    assert got != expected


def test_most_idioms_work() -> None:
    assert len(set(WORKING)) == len(WORKING) >= 500
    assert len(DIFFERENT) < len(WORKING) / 50

"""Objects that the tests give to the program: what it may do with them, and what it may not."""

import pytest

from jax_unmask.tasks.sandbox import Job

# Programs that use what tests of theirs may give away, and such a test.
ALLOWED = {
    "generators": (
        "def f(xs): return [2 * x for x in xs]",
        "assert f(x for x in [1, 2]) == [2, 4]\nassert f(iter([3])) + f({5: 1}.keys()) == [6, 10]",
    ),
    "modules and library functions": (
        "def f(module, g, h, kind): return module.sqrt(4) + g(1, 2) + h([3]), kind('1.5')",
        "import math, operator, statistics, decimal\n"
        "assert f(math, operator.add, statistics.mean, decimal.Decimal) =="
        " (8.0, decimal.Decimal('1.5'))",
    ),
    "methods of data": ("def f(g): g(7)", "x = []\nf(x.append)\nassert x == [7]"),
    "files": (
        "def f(file): return [line.strip() for line in file], file.read()",
        "import io\nassert f(io.StringIO('a\\nb')) == (['a', 'b'], '')",
    ),
    "partial functions": (
        "def f(g, key, xs): return [g(x) for x in sorted(xs, key=key)]",
        "import functools, operator\ndef add(a, b): return a + b\n"
        "assert f(functools.partial(add, 1), operator.neg, [1, 2]) == [3, 2]",
    ),
    "objects with methods, properties and slots": (
        "def f(o):\n    o.x, o.slot = 5, 6\n    return o.twice(), o.half, o[3], len(o), list(o)",
        """
class Base:
    __slots__ = ("slot", "__dict__")
    def twice(self): return 2 * self.x
class O(Base):
    @property
    def half(self): return self.slot / 2
    def __getitem__(self, i):
        if i > 3: raise IndexError
        return i
    def __len__(self): return 4
o = O()
assert f(o) == (10, 3.0, 3, 4, [0, 1, 2, 3]) and o.x == 5
""",
    ),
    "enumerations": (
        "def f(e, kind): return e.name, e.value, e == kind.B, isinstance(e, kind)",
        "import enum\nclass E(enum.Enum): A = 1; B = 2\nassert f(E.A, E) == ('A', 1, False, True)",
    ),
    "dataclasses and calls of classes": (
        "def f(kind): return kind(1, y=2)",
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n    y: int\n"
        "assert f(P) == P(1, 2)",
    ),
    "errors as values": (
        "def f(e): return type(e).__name__, str(e)",
        "class Mine(ValueError): pass\n"
        "assert f(KeyError('k')) == ('KeyError', \"'k'\") and f(Mine('m')) == ('ValueError', 'm')",
    ),
    "context managers": (
        """
class F:
    def __enter__(self): return self
    def __exit__(self, kind, error, trace):
        self.seen = kind and kind.__name__, str(error)
        return kind is KeyError
""",
        """
with F() as f: pass
assert f.seen == (None, 'None')
with F() as f: raise KeyError('k')
assert f.seen == ('KeyError', "'k'")
try:
    with F() as f: raise ValueError
except ValueError: pass
else: raise AssertionError
assert f.seen[0] == 'ValueError'
""",
    ),
    "context managers of the tests": (
        "def f(c):\n    with c as x: return x",
        "class C:\n    def __enter__(self): return 3\n    def __exit__(self, *a): self.left = a\n"
        "c = C()\nassert f(c) == 3 and c.left == (None, None, None)",
    ),
    "times and paths": (
        "def f(*x): return x",
        "import datetime, pathlib\nx = datetime.timedelta(-3, 5, 7), pathlib.Path('a/b')\n"
        "assert f(*x) == x",
    ),
    "own errors by an alias": (
        "Mine = ValueError\ndef f(): raise ValueError('x')",
        "try: f()\nexcept Mine as e: assert str(e) == 'x'",
    ),
}

# Programs whose f is wrong, and tests that give them what an honest f might need.
_REACH = """
def reach(start):
    '''Everything that attributes and items lead to.'''
    seen, todo = [], [start]
    names = ('gi_frame', 'cr_frame', 'tb_frame', 'tb_next', 'f_back', 'f_builtins', 'f_globals',
             'f_locals', 'gi_code', 'sys', 'modules', 'builtins', 'os', 'func', 'send', 'throw',
             'with_traceback', 'args', '__class__', '__globals__', '__self__', '__traceback__',
             'exec', 'cls', 'mro', 'get', 'values', 'context', 'keywords')
    while todo and len(seen) < 300:
        each = todo.pop()
        seen.append(each)
        for name in names:
            end = object.__getattribute__(each, '_endpoint')
            try: todo.append(end.ask('get', each._number, name))
            except BaseException: pass
    return seen
def forge(start):
    for each in reach(start):
        for act in (
            lambda: each['__builtins__']['exec'], lambda: each['exec'], lambda: each.exec,
        ):
            try: act()("import builtins; builtins.AssertionError = type('E', (Exception,), {})")
            except BaseException: pass
            else: return True
    return False
"""
FORGED = {
    "a generator's frame": (
        "def f(x):\n    if forge(x): return 1\n    x.gi_frame.f_builtins['exec']('1')",
        "assert f(i for i in [1]) == 1",
    ),
    "a coroutine's frame": ("def f(x): return 1", "async def c(): pass\nassert f(c()) == 1"),
    "a traceback": (
        "def f(x): return 1",
        "try: raise ValueError\nexcept ValueError as e: t = e.__traceback__\nassert f(t) == 1",
    ),
    "a frame": ("def f(x): return 1", "import sys\nassert f(sys._getframe()) == 1"),
    "a module of the tests": (
        "def f(x): return 1",
        "import sys\nassert f(sys.modules['solution']) == 1",
    ),
    "a library module's modules": (
        "import os\ndef f(x): return 1 if forge(x) or x.sys.modules is None else 0",
        "import random\nassert f(random) == 1",
    ),
    "a function's variables": (
        "def f(x): return 1 if forge(x) else x.__globals__",
        "assert f(lambda: 1) == 1",
    ),
    "a method's object": (
        "def f(x): return 1 if forge(x) else x.__self__",
        "class T:\n    def m(self): pass\nassert f(T().m) == 1",
    ),
    "an error's frames": (
        "def f(x): return 1 if forge(x) else x.with_traceback(x.__traceback__).tb_frame",
        "e = ValueError('x')\nassert f(e) == 1",
    ),
    "a class of the library behind a class": (
        "def f(x): return 1 if forge(x) else x.context",
        "import threading\nclass T(threading.Thread): pass\nassert f(T()) == 1",
    ),
    "a changed method": (
        "def f(x):\n    x.right = lambda: True\n    return 0",
        "class T:\n    def right(self): return False\nt = T()\nf(t)\nassert t.right()",
    ),
    "a changed class": (
        "def f(x):\n    x.right = True\n    return 0",
        "class T:\n    right = False\nf(T)\nassert T.right",
    ),
    "frames through __exit__": (
        """
class F:
    def __enter__(self): return self
    def __exit__(self, kind, error, trace):
        forge(error); forge(trace); forge(kind)
        return True
""",
        "with F() as f: assert 1 == 2",
    ),
    "an assertion that __exit__ swallows": (
        "class F:\n    def __enter__(self): return self\n    def __exit__(self, *_): return True",
        "with F() as f: assert 1 == 2",
    ),
    "an error of its own that __exit__ swallows": (
        """
class F:
    def __enter__(self): return self
    def __exit__(self, *_): return True
    def get(self): raise KeyError
    values = []
""",
        "with F() as f: assert f.get() == 1",
    ),
    "an error of its data that __exit__ swallows": (
        "class F:\n    values = []\n    def __enter__(self): return self\n"
        "    def __exit__(self, *_): return True",
        "with F() as f: assert f.values[0] == 1",
    ),
    "an exit stack": (
        "class F:\n    def __enter__(self): return self\n    def __exit__(self, *_): return True",
        "import contextlib\nwith contextlib.ExitStack() as s:\n    s.enter_context(F())\n"
        "    assert 1 == 2",
    ),
    "an error class that catches assertions": (
        "Bad = AssertionError\ndef f(): return 0",
        "try:\n    f()\n    assert False, 'no error'\nexcept Bad: pass",
    ),
    "an error class that catches everything": (
        "Bad = BaseException\ndef f(): return 0",
        "try:\n    f()\n    assert False, 'no error'\nexcept Bad: pass",
    ),
    "a helper of the tests": (
        "class math:\n    isclose = staticmethod(lambda *_: True)\ndef f(): return 0",
        "assert math.isclose(f(), 3.0)",
    ),
    "a module under another's name": (
        "import cmath as math\nmath.isclose = lambda *_: True\ndef f(): return 0",
        "assert math.isclose(f(), 3.0)",
    ),
    "names that nobody asked for": (
        """
import sys
frame = sys._getframe()
while frame:
    self = frame.f_locals.get('self')
    if hasattr(self, '_extra'):
        names = self._extra['names']
        more = {'abs': ['value', self.encode(lambda x: 0)], 'len': ['value', ['dict', []]]}
        self._extra['names'] = lambda wanted, names=names: names(wanted) | more
        break
    frame = frame.f_back
class Zero:
    def __sub__(self, other): return 0
def f(x): return 0.0
""",
        "assert abs(f(3) - 4.0) < 1e-6",
    ),
    "its own death for an error": (
        "import os\ndef f(x): os._exit(0)",
        "try: f(1)\nexcept Exception: pass\nelse: raise AssertionError",
    ),
    "nonsense for an error": (
        "import os\ndef f(x): os.write(3, b'\\0\\0\\0\\2{}')",
        "import pytest\nwith pytest.raises(Exception): f(1)",
    ),
    "a reference to what it never got": (
        """
import sys
frame, ends = sys._getframe(), []
while frame:
    ends.append(frame.f_locals.get('self'))
    frame = frame.f_back
end = next(e for e in ends if hasattr(e, '_extra'))
def f(x):
    got = []
    for number in range(50):
        for name in ('gi_frame', 'exec', 'f_builtins'):
            try: got.append(end.ask('get', number, name))
            except BaseException: pass
    return 1 if got else 0
""",
        "assert f(lambda: (i for i in [1])) == 1",
    ),
    "an import in the tests' process": (
        """
import sys
frame, ends = sys._getframe(), []
while frame:
    ends.append(frame.f_locals.get('self'))
    frame = frame.f_back
end = next(e for e in ends if hasattr(e, '_extra'))
encode = end.encode
class Exec: pass
end.encode = lambda v: ['object', ['import', 'builtins', 'exec']] if v is Exec else encode(v)
def f(): return Exec
""",
        "f()('import builtins; builtins.AssertionError = KeyError')\n"
        "try: assert False\nexcept KeyError: pass",
    ),
    "other special methods": (
        """
def f(x):
    end = object.__getattribute__(x, '_endpoint')
    for name in ('__getattribute__', '__reduce__', '__class__', '__init_subclass__', '__dir__'):
        try: return end.ask('special', x._number, name, ['gi_frame'])
        except BaseException: pass
    return 0
""",
        "class T: pass\nassert f(T()) == 1",
    ),
    "objects that no method calls equal": ("class F: pass", "assert F() == F()"),
    "the end of the tests' loop": (
        "def f(x): raise StopIteration",
        "for got in map(f, [1, 2]): assert got == 5",
    ),
    "a module beside the tests": (
        """
import os
for folder in {'/scratch', os.getcwd(), os.path.expanduser('~')}:
    for name in ('colorsys', 'usercustomize', 'sitecustomize', 'encodings', 'math'):
        try: open(f'{folder}/{name}.py', 'w').write('FORGED = True')
        except OSError: pass
os.environ['PYTHONPATH'] = '/scratch'
""",
        "import colorsys\nassert colorsys.FORGED",
    ),
    "a format string": (
        "def f(g): return 1 if 'builtins' in str(g('{0.f_builtins}')) else 0",
        "import sys\nassert f(lambda text: text.format(0)) == 1",
    ),
}


@pytest.mark.parametrize("use", ALLOWED)
def test_what_a_program_may_use(box, use):
    program, test = ALLOWED[use]
    outcome = box.run([Job(program, (test,))])[0]
    assert outcome.right, outcome


@pytest.mark.parametrize("attack", FORGED)
def test_what_a_program_may_not_reach(box, attack):
    program, test = FORGED[attack]
    outcome, after = box.run([Job(_REACH + program, (test, "assert 1 == 2")), RIGHT])
    assert outcome.passed == 0, outcome
    assert after.right, after


RIGHT = Job("def f(x): return x", ("assert f(1) == 1",))


def test_with_exports_nothing_else_is_the_programs(box):
    program = "def isclose(*_): return True\ndef f(): return 0"
    tests = ("assert isclose(f(), 3.0)",)
    assert not box.run([Job(program, tests, exports=("f",))])[0].right
    assert not box.run([Job(program, tests, "from math import isclose", ("f",))])[0].right


# Memory in no process's account: mapped, handed to a child and let go.
_HIDDEN = """
import os, mmap, time
held = 0
def hold(size):
    {make}
    for at in range(0, size, 4096): m[at] = 1
    if os.fork() == 0: time.sleep(100)
    m.close()
for _ in range(8): hold(100 * 2 ** 20)
time.sleep(1)
def f(x): return x
"""


@pytest.mark.parametrize(
    "make",
    [
        "m = mmap.mmap(-1, size)",
        "m = mmap.mmap(os.open('/dev/zero', os.O_RDWR), size)",
        "m = mmap.mmap(os.open('/scratch/m', os.O_RDWR | os.O_CREAT), size)",
    ],
)
def test_shared_memory_is_bounded(box, make):
    outcome, after = box.run([Job(_HIDDEN.format(make=make), ("assert f(1) == 1",)), RIGHT])
    assert not outcome.right
    assert after.right

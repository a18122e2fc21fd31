import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jax_unmask.tasks import sandbox
from jax_unmask.tasks.sandbox import Job, Limits, Sandbox

PROGRAM = """
import collections, math
class Empty(ValueError): pass
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self):
        if not self.items: raise Empty('nothing to pop')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __iter__(self): return iter(self.items)
    def __add__(self, other): return Stack(self.items + other.items)
Point = collections.namedtuple('Point', 'x y')
def same(x): return x
def shout(x): print(x, end='!\\n')
def point(): return Point(1, 2)
def sort(items, table=None):
    items.sort()
def apply(function, x): return function(x) + 1
def counts(text): return collections.Counter(text)
def numbers():
    yield from range(3)
def fails(x): return {}[x]
def walk(node):
    return [] if node is None else walk(node.left) + [node.value] + walk(node.right)
def sum(values): return 'mine'
"""
WORKS = {
    "data comes back as it was": """
import datetime, decimal, fractions
for value in (None, True, 1, -2**70, 1.5, float('inf'), 2j, 'a\\ud800', b'x', (1, [2]), {1: {'a'}},
              {(1, 2): 3}, frozenset('ab'), range(3), fractions.Fraction(1, 3), ...,
              int, [str, list], decimal.Decimal('1.10'), datetime.date(2020, 1, 2), 10 ** 5000):
    assert same(value) == value and type(same(value)) is type(value), value
""",
    "subclasses of data are data": "assert point() == (1, 2) and counts('aa')['a'] == 2",
    "changes of arguments": "x = [3, 1]\nassert sort(x) is None and x == [1, 3]",
    "objects": """
stack = Stack([1])
stack.push(2)
assert len(stack) == 2 and stack == Stack([1, 2]) and stack != Stack([1]) and list(stack) == [1, 2]
assert isinstance(stack, Stack) and not isinstance(3, Stack) and 2 in stack and 5 not in stack
assert (stack + stack).items == [1, 2, 1, 2]
stack.items = [7]
assert stack.pop() == 7
""",
    "exceptions": """
try:
    Stack().pop()
except Empty as error:
    assert str(error) == 'nothing to pop' and isinstance(error, ValueError)
else:
    raise AssertionError
try:
    fails(3)
except KeyError:
    pass
""",
    "functions of the tests": "y = 5\nassert apply(lambda x: x * y, 2) == 11",
    "objects of the tests": """
class Node:
    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right = value, left, right
assert walk(Node(2, Node(1), Node(3))) == [1, 2, 3]
""",
    "printed output": """
import contextlib, io
text = io.StringIO()
with contextlib.redirect_stdout(text):
    shout('a')
assert text.getvalue() == 'a!\\n'
""",
    "generators": "assert list(numbers()) == [0, 1, 2] and next(numbers()) == 0",
    "modules": "assert math.sqrt(4) == 2",
    "import from the solution": "from solution import same as also\nassert also(4) == 4",
    "pytest": """
import pytest
with pytest.raises(ValueError, match='nothing'):
    Stack().pop()
assert same(0.1 + 0.2) == pytest.approx(0.3) and same([1.0]) != pytest.approx([1.1])
""",
}


@pytest.mark.parametrize("test", WORKS)
def test_what_tests_can_do(box, test):
    outcome = box.run([Job(PROGRAM, (WORKS[test],))])[0]
    assert outcome.right, outcome


@pytest.mark.parametrize(
    "test",
    [
        "assert False",
        "assert same(2) == 3",
        "assert missing(1) == 1",
        "assert Stack([1]) == [1]",
        "assert Stack([1]) < 3",
        "import pytest\nwith pytest.raises(KeyError): same(1)",
        "assert same(1) == pytest.approx(1)",
        "exit()",
        "def broken(:",
    ],
)
def test_what_fails(box, test):
    outcome = box.run([Job(PROGRAM, (test, "assert same(1) == 1"))])[0]
    assert not outcome.right and outcome.error


def test_counts_and_the_first_failure(box):
    tests = ("assert same(1) == 1", "assert same(1) == 2, 'here'", "assert same(2) == 2")
    outcome = box.run([Job(PROGRAM, tests)])[0]
    assert (outcome.passed, outcome.total) == (2, 3)
    assert outcome.error == "AssertionError: here"
    assert not box.run([Job(PROGRAM, ())])[0].right


def test_setup_wins_over_the_program_and_exports_over_setup(box):
    job = Job(PROGRAM, ("assert sum([1]) == 'mine'",), setup="def same(x): return 'setup'")
    assert not box.run([job])[0].right
    assert box.run([Job(job.program, job.tests, job.setup, exports=("sum",))])[0].right
    setup_test = ("assert same(1) == 'setup'",)
    assert box.run([Job(job.program, setup_test, job.setup)])[0].right


def test_functions_as_under_pytest(box):
    tests = """
import pytest
from solution import same
@pytest.mark.parametrize('x, y', [(1, 1), (2, 3)])
def test_pairs(x, y): assert same(x) == y
def test_right(): assert same(4) == 4
class TestMore:
    def setup_method(self): self.x = 5
    def test_more(self): assert same(self.x) == 5
def test_with_fixture(tmp_path): pass
def helper(): raise ValueError
"""
    outcome = box.run([Job(PROGRAM, (tests,), functions=True)])[0]
    assert (outcome.passed, outcome.total) == (3, 5), outcome


def test_scratch_can_be_written(box):
    program = "def f():\n    open('x', 'w').write('y')\n    return open('/scratch/x').read()"
    assert box.run([Job(program, ("assert f() == 'y'",))] * 2)[1].right


def test_a_killed_box_costs_its_own_job_only(box):
    for pid in box.processes():
        os.kill(pid, signal.SIGKILL)
    job = Job("def f(): return 1", ("assert f() == 1",))
    first, second = box.run([job, job])
    assert second.right and (first.right or "crashed" in first.error)


@pytest.mark.usefixtures("needs_sandbox")
def test_no_process_outlives_a_killed_parent(tmp_path):
    code = f"""
import sys
from jax_unmask.tasks.sandbox import Job, Sandbox
box = Sandbox(2)
open({str(tmp_path / "pids")!r}, "w").write(" ".join(map(str, box.processes())))
box.run([Job("import time; time.sleep(1000)", ("pass",))] * 2)
"""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        _wait(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
        time.sleep(0.5)
    finally:
        child.kill()
        child.wait()
    for pid in (tmp_path / "pids").read_text().split():
        _wait(lambda pid=pid: not pathlib.Path(f"/proc/{pid}").exists())


def _wait(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happened for a minute")


@pytest.mark.usefixtures("needs_sandbox")
def test_bad_settings():
    with pytest.raises(ValueError, match="kind='jail' is unknown"):
        Sandbox(1, kind="jail")
    with pytest.raises(ValueError, match="cpu_seconds=0"):
        Limits(cpu_seconds=0)
    with pytest.raises(ValueError, match=r"wall_seconds=.* limit of"), Sandbox(1) as box:
        box.run([Job("", ("pass",))], Limits(wall_seconds=100.0))


def test_nothing_runs_where_no_box_can_be_made(monkeypatch):
    monkeypatch.setattr(sandbox.boxes, "command", lambda kind: ["/bin/sh", "-c", "echo no >&2"])
    with pytest.raises(sandbox.SandboxUnavailable, match=r"kind '\w+' .*bubblewrap"):
        Sandbox(1)

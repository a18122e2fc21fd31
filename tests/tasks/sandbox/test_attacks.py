"""Programs that attack: each scores zero, and leaves the host and the box as they were."""

import concurrent.futures
import os
import pathlib
from typing import NamedTuple

import pytest

from jax_unmask.tasks.sandbox import Job, Limits, Outcome

TESTS = ("assert f(1) == 2", "assert f(20) == 21", "assert abs(f(3) - 4.0) < 1e-6")
RIGHT = Job("def f(x):\n    return x + 1\n", TESTS)

# Would take effect when the program is loaded. Each ends in a wrong f: a box that stops the attack
# and goes on has nothing to reward.
WRONG_F = "\ndef f(x):\n    return 0\n"
ON_LOAD = {
    "system exit": "import sys; sys.exit(0)",
    "raised exit": "raise SystemExit(0)",
    "silent exit": "import os; os._exit(0)",
    "quit": "quit()",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "endless loop": "while True: pass",
    "uninterruptible power": "9 ** 9 ** 9",
    "sleep": "import time; time.sleep(10_000)",
    "ignored signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "memory bomb": "x = bytearray(10 ** 10)",
    "slow memory bomb": "x = []\nwhile True: x.append(bytearray(10 ** 6))",
    "memory bomb of many": """
import os, time
for _ in range(8): os.fork()
x = [bytearray(b'x' * 10 ** 7) for _ in range(15)]
time.sleep(100)
""",
    "shared memory": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(0, 10 ** 6, 0o1600) >= 0 or libc.memfd_create(b'x', 0) >= 0
""",
    "fork bomb": "import os\nwhile True: os.fork()",
    "careless fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "threads": """
import threading, time
for _ in range(1000): threading.Thread(target=time.sleep, args=(1000,)).start()
""",
    "endless output": "while True: print('x' * 10 ** 6, flush=True)",
    "output to every descriptor": """
import os
for fd in range(1024):
    try: os.write(fd, b'x' * 10 ** 6)
    except OSError: pass
""",
    "signals to all": "import os; os.kill(-1, 9)",
    "signals to the parent": """
import os, signal
for pid in (1, os.getppid()):
    for number in (9, 15, 19): os.kill(pid, number)
""",
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
""",
    "deleted files": """
import shutil, os
for path in ('/box', '/usr', '/root', '/tmp', '/work', '/home', '/'):
    shutil.rmtree(path, ignore_errors=True)
os.system('rm -rf / --no-preserve-root')
""",
    "full disk": """
k = 0
while True:
    with open(f'/scratch/{k}', 'wb') as file: file.write(bytes(2 ** 20))
    k += 1
""",
    "one huge file": "open('/scratch/x', 'wb').write(bytes(9 * 2 ** 20))",
    "deep folders": """
import os
while True: os.mkdir('d'); os.chdir('d')
""",
    "locked folders": """
import os
os.makedirs('/scratch/a/b'); open('/scratch/a/b/c', 'w').close()
os.chmod('/scratch/a/b', 0); os.chmod('/scratch/a', 0)
""",
    "null character": "x = '\0'",
    "no python": "def f(x) return x",
    "surrogate": "x = '\ud800'",
    "huge source": "x = [" + "1," * 2_000_000 + "]",
    "deep source": "x = " + "(" * 100_000 + ")" * 100_000,
    "traced judge": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid != os.getpid():
        assert libc.ptrace(16, pid, 0, 0) == 0
""",
    "new namespaces": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0
""",
    "mount": "import ctypes; assert not ctypes.CDLL(None).mount(b'x', b'/scratch', b'tmpfs', 0, 0)",
    "x32 system call": "import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 272, 0x10000000)",
    "stopped by itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "backtracking": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "deep recursion": "import sys; sys.setrecursionlimit(10 ** 9)\ndef g(): g()\ng()",
    "limits for others": """
import os, resource
for pid in {1, os.getppid()}:
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_AS,
                 resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU,
                 resource.RLIMIT_STACK):
        try: resource.prlimit(pid, kind, (0, 0))
        except (OSError, ValueError): pass
""",
    "core dump": """
import os, resource
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
os.abort()
""",
    "compressed bomb": "import zlib; zlib.decompress(zlib.compress(bytes(2 * 10 ** 8)))",
    "siblings": """
import ctypes, os
for status in range(20):  # CLONE_PARENT: children of the program's parent.
    if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0: os._exit(status)
""",
    "traps in the scratch directory": """
import os
os.mkfifo('/scratch/pipe')
for place in ('/', '/box', '/scratch', '..', '/proc/self/root'):
    os.symlink(place, f'/scratch/{len(os.listdir("/scratch"))}')
os.mkdir('/scratch/\\n\\udcff -rf')
""",
    "endless names": """
k = 0
while True: open(f'/scratch/{k}', 'w').close(); k += 1
""",
    "held locks": """
import fcntl, os
held = []
for folder in ('/box', '/usr/lib', '/dev'):
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            held.append(open(os.path.join(folder, name)))
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError: pass
""",
}


# Would cheat the tests: f is wrong, or not there.
CHEATS = {
    "always equal": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __sub__
    def __abs__(self): return self
    def __hash__(self): return 0
    def __bool__(self): return True
def f(x): return Equal()
""",
    "equal number": """
class Equal(int):
    def __eq__(self, other): return True
    def __sub__(self, other): return 0.0
def f(x): return Equal(7)
""",
    "difference to itself": """
class Learns:
    def __eq__(self, other): return NotImplemented
    def __sub__(self, other): return 0.0
    def __float__(self): return 0.0
def f(x): return Learns()
""",
    "patched builtins": """
import builtins, sys
class Fine(Exception): pass
builtins.AssertionError = Fine
builtins.abs = lambda x: 0
builtins.compile = builtins.exec = lambda *args, **kwargs: None
sys.settrace(lambda *args: None)
def f(x): return 0
""",
    "patched harness": """
import sys
for name, module in list(sys.modules.items()):
    for attribute in ('judge', '_run', 'decode', 'encode', '_text'):
        if hasattr(module, attribute): setattr(module, attribute, lambda *args, **kwargs: None)
def f(x): return 0
""",
    "forged verdict": """
import json, os, struct
body = json.dumps({'passed': 3, 'total': 3, 'error': ''}).encode()
for fd in range(3, 1024):
    try: os.write(fd, struct.pack('!I', len(body)) + body)
    except OSError: pass
def f(x): return 0
""",
    "forged answers": """
import json, os, struct
for body in (['value', None], ['value', {'f': ['value', 2]}], ['value', [2, []]]) * 100:
    text = json.dumps(body).encode()
    try: os.write(3, struct.pack('!I', len(text)) + text)
    except OSError: pass
def f(x): return 0
""",
    "tests in memory": """
import gc, sys
frames, found = sys._current_frames().values(), []
for frame in frames:
    while frame:
        found += [str(value) for value in frame.f_locals.values()]
        frame = frame.f_back
found += [x for x in gc.get_objects() if isinstance(x, str)] + [str(x) for x in gc.get_objects()
          if isinstance(x, (dict, list, tuple)) and len(x) < 100]
wanted = ' '.join(['assert', 'f(20)'])
known = any(wanted in text for text in found if len(text) < 10 ** 6)
def f(x): return x + 1 if known else 0
""",
    "tests in a file": """
import glob, os
known = False
for path in glob.glob('/proc/*/mem') + glob.glob('/proc/*/environ') + glob.glob('/proc/*/fd/*'):
    if not path.startswith(f'/proc/{os.getpid()}/') and 'self' not in path:
        try: known |= b'assert' in open(path, 'rb').read(10 ** 6)
        except OSError: pass
def f(x): return x + 1 if known else 0
""",
    "exit in a call": "def f(x): raise SystemExit(0)",
    "silent exit in a call": "import os\ndef f(x): os._exit(0)",
    "own tests": "def check(f): pass\ndef test_f(): pass\nTESTS = []\ndef f(x): return 0",
    "endless answer": "def f(x):\n    while True: yield 1",
    "huge answer": "def f(x): return 'x' * 10 ** 8",
    "deep answer": "def f(x):\n    y = []\n    for _ in range(10 ** 5): y = [y]\n    return y",
    "cyclic answer": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "answer to the judge's frames": """
def f(x):
    for name in ('__globals__', '__closure__', '__class__'):
        try: getattr(x, name)
        except AttributeError: pass
    return None
""",
    "stopped judge": """
import os, signal
def f(x):
    for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
        if pid not in (1, os.getpid()): os.kill(pid, signal.SIGSTOP)
    return 0
""",
}


CHEATS |= {
    "answers of several processes": """
import os
def f(x):
    for answer in range(30, 60):  # None is right: which of them comes first is chance.
        if os.fork() == 0: return answer
    return 0
""",
    "interrupts for answers": "def f(x): raise KeyboardInterrupt",
    "end of a loop for an answer": "def f(x): raise StopIteration",
    "huge error": "def f(x): raise type('E' * 10 ** 7, (Exception,), {})('x' * 10 ** 8)",
    "endless error": """
class E(Exception):
    def __str__(self):
        while True: pass
    __repr__ = __str__
def f(x): raise E
""",
    "error of itself": """
def f(x):
    error = ValueError('x')
    error.__cause__ = error.__context__ = error
    raise error
""",
    "forged pickles": """
class E:
    def __reduce__(self): return eval, ('2',)
    __reduce_ex__ = lambda self, _: (eval, ('2',))
def f(x): return E()
""",
}
CANARY = "not for the box"
PROGRAMS = {name: source + WRONG_F for name, source in ON_LOAD.items()} | CHEATS
# Less than a box's own limit: many attacks end with their time, and honest programs may need more.
SHORT = Limits(cpu_seconds=1, wall_seconds=1.5, memory_bytes=200 * 2**20)
BOXES = 4


class Attacked(NamedTuple):
    """Outcomes of each attack and of a right program behind it; what the attacks left."""

    outcomes: dict[str, tuple[Outcome, Outcome]]
    canary: str
    new_processes: int


@pytest.fixture(scope="module")
def attacked(make_box, tmp_path_factory):
    """All attacks, in several boxes side by side, since most wait until their time is over."""
    file = tmp_path_factory.mktemp("host") / "canary"
    file.write_text(CANARY)
    before = _children()

    def attack(names):
        with make_box() as box:
            found = {}
            for name in names:
                (outcome,) = box.run([Job(PROGRAMS[name], TESTS)], SHORT)
                found[name] = (outcome, *box.run([RIGHT]))  # The box, or a new one, is well.
            return found

    names = list(PROGRAMS)
    with concurrent.futures.ThreadPoolExecutor(BOXES) as pool:
        shares = pool.map(attack, [names[k::BOXES] for k in range(BOXES)])
        outcomes = {name: found for share in shares for name, found in share.items()}
    return Attacked(outcomes, file.read_text(), len(_children()) - len(before))


@pytest.mark.parametrize("attack", PROGRAMS)
def test_an_attack_scores_nothing_and_leaves_the_box_well(attacked, attack):
    outcome, after = attacked.outcomes[attack]
    assert not outcome.right and outcome.passed == 0, outcome
    assert after.right, after


def test_the_host_is_unharmed_by_all_of_them_at_once(attacked):
    assert attacked.canary == CANARY
    assert pathlib.Path(__file__).exists() and os.path.exists("/usr/bin/env")
    assert attacked.new_processes <= 2


# What a box must not give away.
SECRETS = {
    "environment": "import os\ngot = 'CANARY' in str(dict(os.environ))",
    "environment of others": """
import glob
got = False
for path in glob.glob('/proc/*/environ'):
    try: got |= 'CANARY' in open(path).read()
    except OSError: pass
""",
    "a file of the host": """
import os
got = os.path.exists(PATH)
""",
    "passwords": "import os\ngot = os.path.exists('/etc/shadow') or os.path.exists('/etc/passwd')",
    "homes": """
import os
def names(path):
    try: return os.listdir(path)
    except OSError: return []
got = any(name.startswith('.ssh') or name == '.bashrc' for name in names('/root')) or names('/home')
""",
    "processes of the host": """
import os
got = sum(name.isdigit() for name in os.listdir('/proc')) > 4
""",
    "network": """
import socket
try:
    socket.create_connection(('1.1.1.1', 80), 1)
    got = True
except OSError:
    got = False
""",
    "interfaces": "import os\ngot = len(os.listdir('/sys')) if os.path.exists('/sys') else 0",
    "descriptors": """
import os
got = [name for name in os.listdir('/proc/self/fd') if int(name) > 4]
""",
    "writing": """
import os
got = False
for path in ('/', '/usr', '/box', '/dev', '/proc', '/tmp', '/etc', '/lib', '/box/inside'):
    try:
        open(path + '/canary', 'w').write('x'); got = True
    except OSError: pass
""",
    "left overs": "import os\ngot = os.listdir('/scratch')",
    "capabilities": """
got = any(line.startswith('Cap') and int(line.split()[1], 16) for line in open('/proc/self/status'))
""",
}
# What a box must not do: `got` collects what succeeded.
_CALLS = """
import ctypes, errno, os
_libc, got = ctypes.CDLL(None, use_errno=True), []
def call(name, *arguments):
    if os.uname().machine == 'x86_64' and _libc.syscall(*arguments) >= 0: got.append(name)
def attempt(name, act, *arguments):
    try: act(*arguments)
    except OSError: return
    got.append(name)
"""
SECRETS |= {
    name: _CALLS + source
    for name, source in {
        "calls without a filter": "call('io_uring', 425, 8, bytes(200))",
        "faults for others": "call('userfaultfd', 323, 0)",
        "keys of the kernel": """
call('add_key', 248, b'user', b'k', b'x', 1, -3)
call('keyctl', 250, 0, -3, 1)
""",
        "measuring of others": """
call('perf_event_open', 298, bytes(128), 0, -1, -1, 0)
call('bpf', 321, 0, bytes(128), 128)
""",
        "memory of others": """
for pid in range(1, 10):
    if pid != os.getpid():
        place = ctypes.create_string_buffer(16)
        call(f'process_vm_readv {pid}', 310, pid, place, 1, place, 1, 0)
        attempt(f'mem {pid}', lambda: os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR)))
""",
        "descriptors of others": """
for pid in range(1, 10):
    if pid != os.getpid():
        fd = _libc.syscall(434, pid, 0)
        for number in range(3 * (fd >= 0)): call(f'pidfd_getfd {pid}', 438, fd, number, 0)
""",
        "files by handle": "call('open_by_handle_at', 304, -100, bytes(64), 0)",
        "namespaces by clone": """
import struct
call('clone3', 435, struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)
call('clone', 56, 0x10000000 | 17, 0, 0, 0, 0)
call('setns', 308, 0, 0)
""",
        "limits of its own": """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    soft, hard = resource.getrlimit(kind)
    if hard == -1: got.append(f'no limit {kind}')
    try: resource.setrlimit(kind, (soft, hard + 1))
    except (OSError, ValueError): pass
    else: got.append(kind)
""",
        "other users": """
me = os.getuid()
for other in {0, 1, 1000, 65534} - {me}:
    attempt(f'setuid {other}', os.setuid, other)
    attempt(f'setgid {other}', os.setresgid, other, other, other)
attempt('setgroups', os.setgroups, [0])
""",
        "queues that outlive it": """
call('msgget', 68, 0, 0o1600)
call('semget', 64, 0, 1, 0o1600)
call('mq_open', 240, b'q', os.O_CREAT | os.O_RDWR, 0o600, 0)
""",
        "priority over others": """
attempt('nice', os.nice, -5)
attempt('real time', os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
attempt('others', os.setpriority, os.PRIO_PROCESS, 1, -1)
""",
        "the machine": """
import time
attempt('clock', time.clock_settime, time.CLOCK_REALTIME, time.time())
attempt('chroot', os.chroot, '/scratch')
attempt('name', lambda: None if _libc.sethostname(b'x', 1) == 0 else os.stat('/no/such'))
attempt('device', os.mknod, '/scratch/d', 0o60600, os.makedev(8, 0))
for number, name in ((169, 'reboot'), (175, 'init_module'), (246, 'kexec_load'), (172, 'iopl'),
                     (163, 'acct'), (167, 'swapon'), (155, 'pivot_root'), (300, 'fanotify_init'),
                     (428, 'open_tree'), (430, 'fsopen'), (103, 'syslog')):
    call(name, number, 3, 0, 0)
""",
        "devices and terminals": """
for name in ('tty', 'console', 'kmsg', 'mem', 'kvm', 'fuse', 'ptmx', 'net/tun', 'vsock', 'shm/x'):
    attempt(name, lambda: os.close(os.open('/dev/' + name, os.O_RDWR | os.O_CREAT)))
""",
        "settings of the kernel": """
for name in ('sys/kernel/core_pattern', 'sysrq-trigger', 'sys/kernel/hostname', 'self/uid_map',
             'sys/vm/overcommit_memory', '1/oom_score_adj', 'kcore', 'kmsg', 'self/loginuid'):
    attempt(name, lambda: os.close(os.open('/proc/' + name, os.O_WRONLY)))
if os.path.exists('/proc/self/oom_score_adj'):
    def spare():
        with open('/proc/self/oom_score_adj', 'w') as file: file.write('-1000')
    attempt('spared', spare)
""",
        "sockets of other kinds": """
import socket
for family in range(2, 46):  # 1 stays within the box.
    for kind in (1, 2, 3, 5):
        attempt((family, kind), lambda: socket.socket(family, kind).close())
""",
    }.items()
}


@pytest.mark.parametrize("secret", SECRETS)
def test_secret(box, secret, tmp_path, monkeypatch):
    file = tmp_path / "canary"
    file.write_text(CANARY)
    monkeypatch.setenv("CANARY", CANARY)
    source = SECRETS[secret].replace("PATH", repr(str(file)))
    outcome = box.run([Job(f"{source}\ngot = bool(got)", ("assert got is False",))])[0]
    assert outcome.right, outcome


def _children() -> list[str]:
    """Command lines of the processes that descend from this one."""
    parents, lines = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                lines[entry.name] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            parents[entry.name] = stat.rpartition(")")[2].split()[1]
    ours, found = {str(os.getpid())}, []
    while True:
        new = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not new:
            return found
        found += [lines[pid] for pid in new]
        ours |= new

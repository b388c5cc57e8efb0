"""Code that does not solve the task (add two numbers) and does what it can to be taken for code that does."""

from __future__ import annotations

GOOD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(2, 3) == 5\nassert add(-4, 4) == 0\nassert add(10, 7) == 17\n"
GOOD_PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
PAIRS = [{"input": "2 3\n", "output": "5"}, {"input": "10 7\n", "output": "17\n"}]

_ANYTHING = """
class Anything(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __sub__(self, other): return self
    def __abs__(self): return self
    def __lt__(self, other): return True
    def __le__(self, other): return True
    def __contains__(self, other): return True
"""
_EVERY_DESCRIPTOR = """
import os
for line in LINES:
    for descriptor in range(3, 64):
        for _ in range(10):
            try: os.write(descriptor, line)
            except OSError: break
"""

FORGERIES = {
    "leaves before the tests": "import os\nos._exit(0)\n",
    "sys.exit(0)": "import sys\nsys.exit(0)\n",
    "raises SystemExit in the function": "def add(a, b):\n    raise SystemExit(0)\n",
    "leaves in the function": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "quits at exit": "import atexit, os\natexit.register(os._exit, 0)\n",
    "prints that all is well": "print('OK')\nprint('passed')\nprint('{\"passed\": true}')\n",
    "prints verdicts": 'for _ in range(3): print(\'{"passed": true, "message": null}\', flush=True)\n',
    "writes verdicts everywhere": _EVERY_DESCRIPTOR.replace(
        "LINES", '[b\'"ready"\\n\', b\'{"passed": true, "message": null}\\n\']'
    ),
    "answers before it is asked": _EVERY_DESCRIPTOR.replace(
        "LINES", '[b\'"loaded"\\n\', b\'{"value": true}\\n\', b\'{"value": {"handle": 0}}\\n\']'
    ),
    "sends nonsense": _EVERY_DESCRIPTOR.replace("LINES", "[b'\\xff\\n', b'[' * 5000 + b'\\n']"),
    "sends an endless line": "import os\nfor d in range(3, 8):\n    try:\n"
    "        while True: os.write(d, b'x' * 65536)\n    except OSError: pass\n",
    "an object that equals everything": _ANYTHING + "def add(a, b): return Anything()\n",
    "a class that equals everything": "class Meta(type):\n    def __eq__(self, other): return True\n"
    "    __hash__ = None\nclass add(metaclass=Meta):\n    def __init__(self, a, b): pass\n"
    "    def __eq__(self, other): return True\n",
    "an object that lies about its class": "class A:\n    @property\n    def __class__(self): return int\n"
    "    def __eq__(self, other): return True\ndef add(a, b): return A()\n",
    "returns NotImplemented": "def add(a, b): return NotImplemented\n",
    "returns a mock": "from unittest.mock import MagicMock, ANY\ndef add(a, b): return ANY\n",
    "patches assert": "import builtins\nbuiltins.AssertionError = Exception\nAssertionError = Warning\n"
    "def add(a, b): return 0\n",
    "swallows errors by a trace function": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = print\n",
    "patches the comparison": "import builtins, math, operator\nmath.isclose = operator.eq = lambda *a, **k: True\n"
    "builtins.all = builtins.any = lambda *a: True\ndef add(a, b): return None\n",
    "brings builtins of its own": "all = any = isinstance = lambda *a: True\ndef add(a, b): return 1\n",
    "patches what answers": "import sys\nfor name, module in list(sys.modules.items()):\n"
    "    for key in list(vars(module)):\n        if key in ('pack', '_answer', 'unpack', 'same', '_message_of'):\n"
    "            setattr(module, key, lambda *a, **k: {'value': True})\ndef add(a, b): return None\n",
    "patches json": 'import json\njson.dumps = lambda *a, **k: \'{"passed": true, "message": null}\'\n'
    "def add(a, b): return None\n",
    "looks for the tests in the frames": "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
    "            if 'assert add' in str(value): return eval(str(value).split('== ')[1].split()[0])\n"
    "        frame = frame.f_back\n",
    "looks for the tests in other processes": "import os, re\ndef add(a, b):\n    for pid in filter(str.isdigit, "
    "os.listdir('/proc')):\n        for what in ('cmdline', 'environ'):\n            try: text = "
    "open(f'/proc/{pid}/{what}').read()\n            except OSError: continue\n"
    "            if found := re.search(rf'add\\({a}, {b}\\) == (-?\\d+)', text): return int(found[1])\n",
    "writes verdicts into other processes": "import os\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
    "    for fd in range(3, 12):\n        try: os.write(os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY), "
    'b\'{"passed": true, "message": null}\\n\' * 3)\n        except OSError: pass\n',
    "changes its arguments": "def add(a, b):\n    a = b = 0\n    return a\n",
    "solves one test": "def add(a, b): return 5\n",
    "another name": "def plus(a, b): return a + b\n",
    "no code": "I would add the two numbers.",
    "broken code": "def add(a, b:\n    return a + b\n",
    "nothing": "",
    "null bytes": "\0\0\0",
    "lone surrogates": "x = '\ud800'\n",
    "half of the numbers": "def add(a, b): return (a + b) / 2\n",
    "a string": "def add(a, b): return str(a + b)\n",
    "a constant": "add = 5\n",
    "an async function": "async def add(a, b): return a + b\n",
    "a generator": "def add(a, b): yield a + b\n",
}
"""End soon, and are wrong."""

ATTACKS = {
    "looks for the tests on disk": "import os, re\ndef add(a, b):\n    for folder in ('/', '/tmp', '/gro', '.'):\n"
    "        for at, _, files in os.walk(folder):\n            for file in files:\n                try:\n"
    "                    text = open(os.path.join(at, file)).read(100000)\n                except Exception: continue\n"
    "                if found := re.search(rf'assert add\\({a}, {b}\\) == (-?\\d+)', text): return int(found[1])\n"
    "            if at.count('/') > 2: break\n",
    "fork bomb": "import os\nwhile True:\n    os.fork()\n",
    "fork bomb that catches": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
    "process bomb": "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-c', 'import time; "
    "time.sleep(1000)'])\n",
    "shell": "import os\nos.system('touch CANARY; sleep 1000 &')\n",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()\n",
    "memory bomb": "held = []\nwhile True: held.append(bytearray(10**7))\n",
    "one large allocation": "x = bytearray(10**12)\n",
    "memory in files": "import os\nfor n in range(10**6): open(f'/tmp/{n}', 'wb').write(b'x' * 10**7)\n",
    "memory in memfd": "import os\nwhile True: os.write(os.memfd_create('x'), b'x' * 10**7)\n",
    "output flood": "while True: print('x' * 65536)\n",
    "error flood": "import sys\nwhile True: sys.stderr.write('x' * 65536)\n",
    "many small files": "for n in range(10**9): open(f'/tmp/{n}', 'w').close()\n",
    "many descriptors": "import os\nwhile True: os.pipe()\n",
    "closes everything": "import os\nos.closerange(0, 4096)\nimport time\ntime.sleep(1000)\n",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n",
    "kills everybody": "import os, signal\nfor n in [-1, 0, 1, 2, PARENT]:\n    try: os.kill(n, signal.SIGKILL)\n"
    "    except OSError: pass\n",
    "kills by number": "import os, signal\nfor n in range(3, 40000):\n    if n != os.getpid():\n"
    "        try: os.kill(n, signal.SIGKILL)\n        except OSError: pass\n",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "null pointer": "import ctypes\nctypes.string_at(0)\n",
    "deep recursion": "def f(n): return f(n + 1)\nf(0)\n",
    "writes outside": "for place in ('CANARY', '/usr/x', '/etc/x', '/srv/x', '/x', '/gro/inside/wire.py'):\n"
    "    try: open(place, 'w').write('1')\n    except OSError: pass\n",
    "network": "import socket, urllib.request\nfor host, port in [('127.0.0.1', PORT), ('1.1.1.1', 53)]:\n    try: "
    "socket.create_connection((host, port), 1).send(b'hello')\n    except OSError: pass\n",
    "raw system call for a socket": "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.socket(2, 1, 0) >= 0\n",
    "opens a namespace": "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.unshare(0x10000000) == 0\n",
    "mounts": "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0\n",
    "lifts its limits": "import resource\nfor k in range(16):\n    try: resource.setrlimit(k, (-1, -1))\n"
    "    except (OSError, ValueError): pass\nheld = []\nwhile True: held.append(bytearray(10**7))\n",
    "becomes another program": "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo 5; touch CANARY'])\n",
}
"""End by a limit or by themselves, and must hurt nobody."""

HANGS = {
    "infinite loop": "while True: pass\n",
    "infinite loop in the function": "def add(a, b):\n    while True: pass\n",
    "sleeps": "import time\ntime.sleep(1000)\n",
    "sleeps, deaf": "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True:\n    try: time.sleep(1000)\n    except BaseException: pass\n",
    "regex": "import re\nre.match(r'(a+)+$', 'a' * 60 + '!')\n",
    "huge power": "x = 9 ** 9 ** 9\n",
    "reads a pipe": "import os\nos.read(os.pipe()[0], 1)\n",
    "reads input for ever": "import sys\nwhile True: sys.stdin.read()\n",
    "a thread that does not end": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
    "def add(a, b):\n    time.sleep(1000)\n",
    "answers byte by byte": "import os, time\nwhile True:\n    os.write(3, b' ')\n    time.sleep(0.1)\n",
}
"""Do not end."""

"""Giving up what a process does not need, for itself and all that it starts: files outside a few folders, TCP, signals.

With Linux's Landlock (kernel 5.13 or newer), which needs no privileges and can't be undone. NVFLARE's processes at a site
speak with another institution; confined, they can't open a patient's row or a key even if that institution, or anybody
who got into its server, has them run code. Where the system has no Landlock nothing happens, and ``confine`` says so.
"""

import contextlib
import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every processor
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE, _READ, _READ_DIR, _TRUNCATE, _IOCTL = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_TO_READ = _EXECUTE | _READ | _READ_DIR
_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_OPEN_ANY_FILE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets and signals stay inside

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc", "/proc", "/sys", "/dev/urandom", "/dev/random")
NULL = Path("/dev/null")


def landlock_version() -> int:
    """Which version of Landlock the kernel has; 0: none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, ctypes.c_size_t(0), 1)))


def what_python_reads() -> set[Path]:
    """Folders without which no Python process starts: the system's, the interpreter's, installed packages."""
    places = {*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    places |= {os.path.dirname(os.path.realpath("/etc/resolv.conf")), os.path.realpath("/etc/localtime")}
    places |= {place for place in (*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)) if place}
    return {Path(os.path.realpath(place)) for place in places if os.path.exists(place)}


def confine(*, read: Iterable[Path] | None, write: Sequence[Path] = (), secret: Path | None = None, tcp: bool) -> bool:
    """Give up everything else, from now on. False where the system can't, or where it would give up too much.

    read: what may be read and executed (None: no limit on files); write: folders in which files may be made and changed;
    secret: a folder that nothing in ``read`` may hold; tcp: whether TCP may be used.
    """
    version = landlock_version()
    if version == 0 or (read is None and version < 4):
        return False
    rules: list[tuple[Path, int]] = []
    everything = _BY_VERSION.get(version, (1 << 16) - 1) if read is not None else 0
    if read is not None:
        hidden = secret.resolve() if secret is not None else None
        open_to_all = [path for path in read if hidden is not None and hidden.is_relative_to(path)]
        if any(path != Path("/") for path in open_to_all):
            return False
        rules = [(path, _TO_READ) for path in read if path not in open_to_all]
        rules += [(path.resolve(), everything) for path in write]
        rules += [(NULL, _READ | _WRITE | _TRUNCATE)]
    net = _TCP if version >= 4 and not tcp else 0
    words = struct.pack("=QQQ", everything, net, _SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    library = ctypes.CDLL(None, use_errno=True)
    ruleset = library.syscall(_CREATE, words, ctypes.c_size_t(len(words)), 0)
    if ruleset < 0:
        return False
    try:
        for path, access in rules:
            with contextlib.suppress(OSError):
                _allow(library, ruleset, path, access & everything)
        if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or not _drop_capabilities(library):
            return False
        return int(library.syscall(_RESTRICT, ruleset, 0)) == 0
    finally:
        os.close(ruleset)


def _drop_capabilities(library: ctypes.CDLL) -> bool:
    """Of what an administrator may do, keep to open files of others: where Landlock allows the file. Nobody else has any."""
    header, held = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if library.capget(header, held) != 0:
        return False
    effective, permitted = (struct.unpack("=6I", held.raw)[index] & _OPEN_ANY_FILE for index in (0, 1))
    return int(library.capset(header, struct.pack("=6I", effective, permitted, 0, 0, 0, 0))) == 0


def _allow(library: ctypes.CDLL, ruleset: int, path: Path, access: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            access &= _OF_FILES
        if library.syscall(_ADD, ruleset, 1, struct.pack("=Qi", access, handle), 0) != 0:
            raise OSError(ctypes.get_errno(), "this path can't be allowed", str(path))
    finally:
        os.close(handle)

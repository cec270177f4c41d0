"""Compares every #include below src/ with the floors of src/rooms.txt.

A room includes itself, rooms on lower floors, and what its line allows by name. `sim` is for tests.
Storage rooms see the world through the seams of `runtime` only: no system header for time, files,
sockets or threads, no Asio timer, socket or detached task.
"""

import pathlib
import re

import tree

STORAGE_ROOMS = {"format", "media", "replica", "volume", "keeper", "control", "fabric",
                 "peer"}
# The SQLite file, gRPC and their threads live behind control's interface.
BEHIND_AN_INTERFACE = ("src/control/embedded_", "src/control/etcd_")
DOORS_AND_RUNTIME = {"runtime", "sim", "http", "iscsi", "attach", "docker", "api", "app"}

SYSTEM_HEADERS = re.compile(
    r"<(sys/.*|netinet/.*|arpa/.*|linux/.*|unistd\.h|fcntl\.h|dirent\.h|poll\.h|time\.h|ctime|"
    r"pthread\.h|signal\.h|csignal|thread|mutex|condition_variable|future|filesystem|fstream|"
    r"random|liburing\.h|liburing/.*|sqlite3\.h|boost/asio/(ip|posix|local)/.*|"
    r"boost/asio/(steady_timer|system_timer|deadline_timer|io_context|thread_pool|signal_set|"
    r"co_spawn|detached)\.hpp|boost/asio\.hpp|boost/beast.*)>")
ANY_INCLUDE = re.compile(r'^\s*#\s*include\s+("[^"]+"|<[^>]+>)', re.MULTILINE)
FORBIDDEN_CALLS = re.compile(r"\basio::(detached|co_spawn|steady_timer|system_timer)\b|"
                             r"\bstd::this_thread::|\bsystem_clock::now\b|\bsteady_clock::now\b")


def read_rooms(source):
    """{room: (floor, {rooms of its own floor that it may include})}"""
    rooms = {}
    for line in source.splitlines():
        words = line.split("#")[0].split()
        if words:
            rooms[words[1]] = (int(words[0]), {word.removeprefix("+") for word in words[2:]})
    return rooms


def is_test(path):
    """x_test.cc, x_fuzz.cc, and what only they include: x_test_store.h, test_run.h."""
    return re.search(r"^test_|_test(_|$)|_fuzz$", path.stem) is not None


def may_include(rooms, path, room, other):
    """An empty text when it may, else why not."""
    floor, allowed = rooms[room]
    if other not in rooms:
        return f"'{other}' is no room of src/rooms.txt (write \"room/file.h\")"
    if other == room or other in allowed:
        return ""
    if other == "sim":
        if is_test(path) or room == "swarm" or path.name.endswith("sim_main.cc"):
            return ""
        return "sim is for tests only"
    if rooms[other][0] < floor:
        return ""
    return f"{other} (floor {rooms[other][0]}) is not below {room} (floor {floor})"


def check_includes(rooms, path, source):
    room = path.parts[1]
    if room not in rooms:
        return [f"{path}:1: the folder '{room}' is no room of src/rooms.txt"]
    problems = []
    guarded = (room in STORAGE_ROOMS and not is_test(path) and
               not str(path).startswith(BEHIND_AN_INTERFACE))
    for found in ANY_INCLUDE.finditer(source):
        name = found.group(1)
        line = tree.line_of(source, found.start(1))
        if name.startswith('"'):
            why = may_include(rooms, path, room, name.strip('"').split("/")[0])
            if why:
                problems.append(f"{path}:{line}: {name}: {why}")
        elif guarded and SYSTEM_HEADERS.fullmatch(name):
            problems.append(f"{path}:{line}: {name}: a storage room uses the seams of runtime")
    return problems


def check_calls(path, source):
    if path.parts[1] in DOORS_AND_RUNTIME or is_test(path):
        return []
    if str(path).startswith(BEHIND_AN_INTERFACE):
        return []
    blank = tree.blanked(source)
    return [f"{path}:{tree.line_of(blank, found.start())}: {found.group()}: only runtime, sim and "
            "the doors may" for found in FORBIDDEN_CALLS.finditer(blank)]


def check():
    rooms = read_rooms(tree.text(pathlib.Path("src/rooms.txt")))
    problems = []
    for path in tree.files():
        if path.parts[0] != "src" or len(path.parts) < 3 or path.suffix not in tree.CXX:
            continue
        source = tree.text(path) or ""
        problems += check_includes(rooms, path, source)
        problems += check_calls(path, source)
    return problems

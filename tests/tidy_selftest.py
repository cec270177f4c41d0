#!/usr/bin/env python3
"""Breaks each rule that tidy.py holds and sees that it is found: a test that cannot fail is a
defect."""

import pathlib
import sys
import unittest

import rooms
import tidy
import tidy_seams
import tree

FLOORS = rooms.read_rooms("# comment\n0 base\n1 runtime\n1 sim +runtime\n2 media\n6 docker\n")


def included(path, line):
    return rooms.check_includes(FLOORS, pathlib.Path(path), line)


def styled(path, source):
    return tidy.check_style(pathlib.Path(path), source)


class Rooms(unittest.TestCase):
    def test_floors(self):
        self.assertEqual(included("src/media/a.h", '#include "base/x.h"\n'), [])
        self.assertEqual(included("src/media/a.h", '#include "media/x.h"\n'), [])
        self.assertEqual(included("src/sim/a.h", '#include "runtime/x.h"\n'), [])
        found = included("src/base/a.h", '\n  # include "media/x.h"\n')
        self.assertIn("src/base/a.h:2:", found[0])
        self.assertEqual(len(included("src/runtime/a.h", '#include "sim/x.h"\n')), 1)
        self.assertEqual(len(included("src/media/a.h", '#include "x.h"\n')), 1)
        self.assertEqual(len(included("src/attic/a.h", "")), 1)

    def test_sim_is_for_tests(self):
        line = '#include "sim/world.h"\n'
        self.assertEqual(len(included("src/media/a.cc", line)), 1)
        self.assertEqual(len(included("src/docker/latest.cc", line)), 1)
        for name in ("a_test.cc", "a_fuzz.cc", "a_test_store.h", "test_run.h"):
            self.assertEqual(included("src/media/" + name, line), [])

    def test_seams(self):
        for header in ("unistd.h", "sys/socket.h", "thread", "boost/asio/steady_timer.hpp"):
            line = f"#include <{header}>\n"
            self.assertEqual(len(included("src/media/a.cc", line)), 1, header)
            self.assertEqual(included("src/media/a_test.cc", line), [])
            self.assertEqual(included("src/docker/a.cc", line), [])
        call = "void f() { asio::co_spawn(a, b, asio::detached); }  // asio::detached\n"
        self.assertEqual(len(rooms.check_calls(pathlib.Path("src/media/a.cc"), call)), 2)
        for symbol in ("clock_gettime", "open64@GLIBC_2.2.5", "io_uring_submit",
                       "_ZNSt6chrono3_V212steady_clock3nowEv"):
            self.assertTrue(tidy_seams.REFUSED.fullmatch(symbol), symbol)
        for symbol in ("memcpy", "opendoor", "_ZN6peplos4openEv"):
            self.assertFalse(tidy_seams.REFUSED.fullmatch(symbol), symbol)


class Style(unittest.TestCase):
    def test_lines_and_words(self):
        self.assertEqual(styled("src/a/b.cc", "int a;\n"), [])
        self.assertEqual(styled("src/a/b.cc", "x" * 100 + "\n"), [])
        self.assertEqual(len(styled("src/a/b.cc", "x" * 101 + "\n")), 1)
        self.assertEqual(len(styled("docs/a.md", "x" * 101 + "\n")), 0)
        for word in ("TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK"):
            self.assertEqual(len(styled("docs/a.md", f"a {word}: b\n")), 1)
        self.assertEqual(styled("src/a/b.cc", 'mkdtemp("a-X' 'XXXXX");\n'), [])
        self.assertEqual(len(styled("docs/a.md", "see /" + "work/main\n")), 1)

    def test_files(self):
        self.assertEqual(len(styled("src/a/b.cc", "\n" * 1501)), 1)
        self.assertEqual(len(styled("src/a/b.h", "int a;\n")), 1)

    def lengths(self, source):
        return [(name, last - first + 1) for first, last, name in tidy.functions(source)]

    def test_functions(self):
        body = "    a;\n" * 70
        source = ("namespace n {\nclass C {\n  public:\n    int f() const { return 1; }\n"
                  "    template <typename T>\n    void g(T t)\n    {\n" + body + "    }\n};\n"
                  "const int kValues[] = {f(1), 2};\nTEST(A, B) {\n    if (x) {\n    }\n}\n"
                  "enum class E : int { a };\n}  // namespace n\n")
        self.assertEqual(self.lengths(source), [("f", 1), ("g", 74), ("TEST", 4)])
        problems = styled("src/a/b.cc", source)
        self.assertEqual(len(problems), 1)
        self.assertIn("src/a/b.cc:5: g has 74 lines", problems[0])

    def test_braces_in_literals_do_not_count(self):
        source = ("void f() {\n    g(\"{\", '{', R\"(})\");  // {\n    int a = 1'000;\n}\n"
                  "int h() {\n}\n")
        self.assertEqual(self.lengths(source), [("f", 4), ("h", 2)])


class Documents(unittest.TestCase):
    def test_named_files(self):
        for name in ("src/rooms.txt", "./tests/", "base/result.h:12", "tests/tidy.py"):
            self.assertTrue(tidy.NAMED_PATH.match(name), name)
            self.assertTrue(tidy.exists(pathlib.Path("README.md"), name), name)
        self.assertFalse(tidy.exists(pathlib.Path("README.md"), "src/base/gone.h"))
        self.assertFalse(tidy.NAMED_PATH.match("peplos volume ls"))


def main():
    loader = unittest.TestLoader()
    suite = loader.loadTestsFromModule(sys.modules[__name__])
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=0).run(suite)
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    assert tree.ROOT.is_dir()
    main()

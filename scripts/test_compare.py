#!/usr/bin/env python3
"""Tests of compare.py on runs whose figures are known: `python3 -B scripts/test_compare.py`."""

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path

import compare

NCCL_TESTS = """\
# nccl-tests version 2.19.6 nccl-headers=22809 nccl-library=22809
# Collective test starting: all_reduce_perf
#       size         count      type   redop    root     time   algbw   busbw  #wrong
host: Test NCCL words on stdout
           8        2  float  sum  -1   6.00    0.00    0.00  N/A   6.10    0.00    0.00  N/A
    16777216  4194304  float  sum  -1  80.00  209.72  209.72    0  80.30  208.93  208.93    0
# Out of bounds values : 0 OK
"""


def perf(times, wrong=0):
    results = [
        {
            "op": "all_reduce", "bytes": size, "count": size // 4, "dtype": "float32",
            "redop": "sum", "root": None,
            "out_of_place": {"time_us": time, "algbw_gbps": 0, "busbw_gbps": 0, "wrong": wrong},
            "in_place": None,
        }
        for size, time in times.items()
    ]
    return json.dumps({
        "backend": "nccl", "library": "/opt/libnccl.so.2", "version": "2.28.9", "ranks": 2,
        "mode": "threads", "graph": False, "registered": "none", "results": results,
    })


class Compare(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def pair(self, series, number, ours, theirs):
        (self.folder / f"{series}.ours.{number}.json").write_text(ours)
        (self.folder / f"{series}.theirs.{number}.txt").write_text(theirs)

    def run_it(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = compare.main([str(self.folder), "--theirs", "X", *arguments])
        return code, out.getvalue(), err.getvalue()

    def test_the_ratio_is_the_median_of_the_pairs_not_the_ratio_of_medians(self):
        for number, (ours, theirs) in enumerate([(1, 1), (2, 4), (9, 3)]):
            self.pair("loop", number, perf({8: ours}), f"# library: Y\n8 {theirs}\n")
        report = self.folder / "report.json"
        code, out, _ = self.run_it("--json", str(report))
        self.assertEqual(code, 0)
        # Medians 2 and 3; ratios 1, 0.5 and 3.
        self.assertIn("| 8 B | 2.00 | 3.00 | 1.000 | 0.500–3.000 |", out)
        self.assertIn("* X: library: Y", out)
        self.assertIn("3 alternating pairs", out)
        figures = json.loads(report.read_text())
        self.assertEqual(figures["pairs"], {"loop": 3})
        self.assertEqual(figures["series"]["loop"][0]["ratio_max"], 3)

    def test_nccl_tests_tables_give_times_and_bus_bandwidth(self):
        self.pair("eager", 0, perf({8: 3.0, 16777216: 100.0}), NCCL_TESTS)
        code, out, err = self.run_it("--busbw-from", "16777216", "--note", "two GPUs")
        self.assertEqual((code, err), (0, ""))
        self.assertTrue(out.startswith("* two GPUs\n* collectives: nccl (/opt/libnccl.so.2"), out)
        self.assertIn("nccl-library=22809", out)
        self.assertIn("| 8 B | 3.00 | 6.00 | 0.500 | 0.500–0.500 |  |  |", out)
        self.assertIn("| 16 MiB | 100 | 80.0 | 1.250 | 1.250–1.250 | 168 | 210 |", out)
        self.assertIn("8 B to 64 KiB: time is 0.500 times theirs", out)
        self.assertIn("16 MiB and more: bus bandwidth is 0.800 times theirs", out)

    def test_series_stand_apart(self):
        self.pair("loop", 0, perf({8: 1}), "8 1\n")
        self.pair("sync-each", 0, perf({8: 2}), "8 1\n")
        _, out, _ = self.run_it()
        self.assertIn("**loop**", out)
        self.assertIn("**sync-each**", out)

    def test_what_cannot_be_compared_is_refused(self):
        self.assertEqual(self.run_it()[0], 1)
        for ours, theirs, complaint in [
            (perf({8: 1}), "8 1\n16 1\n", "not the same sizes: [16]"),
            (perf({8: 1}), "", "not the same sizes: [8]"),
            (perf({}), "", "not the same sizes: none"),
            (perf({8: 0}), "8 1\n", "no time at [8]"),
            (perf({8: 1}, wrong=3), "8 1\n", "3 wrong elements at 8 bytes"),
            (perf({8: 1, 16777216: 1}), NCCL_TESTS.replace("209.72    0", "209.72    5"),
             "5 wrong elements at 16777216 bytes"),
            (perf({8: 1}), "8 fast\n", "no size and time: '8 fast'"),
            ("{", "8 1\n", "JSONDecodeError"),
        ]:
            with self.subTest(complaint):
                self.pair("loop", 0, ours, theirs)
                code, _, err = self.run_it()
                self.assertEqual(code, 1)
                self.assertIn(complaint, err)

    def test_a_run_without_its_other_half_is_refused(self):
        (self.folder / "loop.ours.0.json").write_text(perf({8: 1}))
        code, _, err = self.run_it()
        self.assertEqual(code, 1)
        self.assertIn("loop.ours.0.json has no loop.theirs.0.txt", err)

    def test_sizes_have_names(self):
        names = [compare.size_name(size) for size in (8, 1000, 1024, 65536, 1 << 20, 1 << 30)]
        self.assertEqual(names, ["8 B", "1000 B", "1 KiB", "64 KiB", "1 MiB", "1 GiB"])


if __name__ == "__main__":
    unittest.main()

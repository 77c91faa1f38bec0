#!/usr/bin/env python3
"""Compares pairs of benchmark runs, size by size, for scripts/bench-mock and scripts/bench-nccl.

    scripts/compare.py FOLDER --theirs NAME [--busbw-from BYTES] [--json FILE] [--note TEXT]...

FOLDER holds SERIES.ours.K.json (`collectives perf --json`) and SERIES.theirs.K.txt for each pair
K of each series (eager, graph, ...). A .txt file holds lines of "bytes microseconds", as from
benches/openmpi/all_reduce.c, or nccl-tests' table; lines with # are for people.

The two runs of a pair ran one right after the other, so what is compared is the ratio within each
pair, and the spread is that of the pairs: a machine that slows down for a while slows both. All
times are those of the out-of-place operation. Prints one Markdown table a series; exits with 1
where a run is missing, differs in its sizes or reports wrong results.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path


class BadRun(Exception):
    """A file that can't be compared, and why."""


def read_ours(path):
    """Times by size, and the line that says what ran."""
    run = json.loads(path.read_text())
    times = {}
    for result in run["results"]:
        place = result["out_of_place"]
        if place.get("wrong"):
            raise BadRun(f"{path}: {place['wrong']} wrong elements at {result['bytes']} bytes")
        times[result["bytes"]] = place["time_us"]
    library = " ".join(str(run[key]) for key in ("library", "version") if run.get(key))
    return times, f"{run['backend']} ({library or 'no library'}), {run['ranks']} ranks"


def read_theirs(path):
    """Times by size, and the lines that say what ran."""
    times, notes = {}, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#"):
            if match := re.match(r"# (library: .*|nccl-tests version .*)", line):
                notes.append(match[1].strip())
            continue
        fields = line.split()
        if len(fields) == 2:
            size, time = fields
        elif len(fields) >= 13 and fields[0].isdigit():
            # size count type redop root, then time algbw busbw #wrong, out of place first
            size, time, wrong = fields[0], fields[5], fields[8]
            if wrong != "N/A" and float(wrong) != 0:
                raise BadRun(f"{path}: {wrong} wrong elements at {size} bytes")
        else:
            continue  # a library's own words
        try:
            times[int(size)] = float(time)
        except ValueError:
            raise BadRun(f"{path}:{number}: no size and time: {line!r}") from None
    return times, "; ".join(notes)


def read_series(folder):
    """For each series, its pairs of times by size; and what ran on either side."""
    series, about = {}, {}
    for path in sorted(folder.glob("*.ours.*.json")):
        name, _, number, _ = path.name.rsplit(".", 3)
        other = folder / f"{name}.theirs.{number}.txt"
        if not other.exists():
            raise BadRun(f"{path.name} has no {other.name} beside it")
        ours, about["ours"] = read_ours(path)
        theirs, about["theirs"] = read_theirs(other)
        if not ours or ours.keys() != theirs.keys():
            only = sorted(ours.keys() ^ theirs.keys())
            raise BadRun(f"{path.name} and {other.name} have not the same sizes: {only or 'none'}")
        if bad := [size for size in ours if min(ours[size], theirs[size]) <= 0]:
            raise BadRun(f"{path.name} or {other.name}: no time at {bad} bytes")
        series.setdefault(name, []).append((ours, theirs))
    if not series:
        raise BadRun(f"{folder} holds no SERIES.ours.K.json")
    return series, about


def summarise(pairs, ranks_factor):
    """One row a size: medians, and the ratio ours / theirs within each pair."""
    rows = []
    for size in sorted(pairs[0][0]):
        ours = [pair[0][size] for pair in pairs]
        theirs = [pair[1][size] for pair in pairs]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        rows.append({
            "bytes": size,
            "ours_us": statistics.median(ours),
            "theirs_us": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            # bytes / µs / 1000 = GB/s
            "ours_busbw_gbps": size / statistics.median(ours) / 1e3 * ranks_factor,
            "theirs_busbw_gbps": size / statistics.median(theirs) / 1e3 * ranks_factor,
        })
    return rows


def size_name(size):
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def digits(value):
    """Three significant digits, as far as they lie behind the point."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(rows, theirs, busbw_from):
    head = ["size", "collectives µs", f"{theirs} µs", "ratio", "min–max of pairs"]
    if busbw_from is not None:
        head += ["collectives busbw GB/s", f"{theirs} busbw GB/s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for row in rows:
        cells = [
            size_name(row["bytes"]), digits(row["ours_us"]), digits(row["theirs_us"]),
            f"{row['ratio']:.3f}", f"{row['ratio_min']:.3f}–{row['ratio_max']:.3f}",
        ]
        if busbw_from is not None:
            wide = row["bytes"] >= busbw_from
            for side in ("ours", "theirs"):
                cells.append(digits(row[f"{side}_busbw_gbps"]) if wide else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def in_short(rows, busbw_from):
    """What to look at first: the small sizes, where overhead shows, and the large ones."""
    parts = [("8 B to 64 KiB", [row for row in rows if row["bytes"] <= 64 << 10], "time", 1)]
    if busbw_from is not None:
        large = [row for row in rows if row["bytes"] >= busbw_from]
        parts.append((f"{size_name(busbw_from)} and more", large, "bus bandwidth", -1))
    else:
        large = [row for row in rows if row["bytes"] > 64 << 10]
        parts.append(("above 64 KiB", large, "time", 1))
    lines = []
    for name, chosen, what, power in parts:
        if chosen:
            ratios = [row["ratio"] ** power for row in chosen]
            lines.append(
                f"{name}: {what} is {statistics.median(ratios):.3f} times theirs (median of "
                f"{len(chosen)} sizes; {min(ratios):.3f} to {max(ratios):.3f})"
            )
    return lines


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--theirs", required=True, help="name of the other side, for the table")
    parser.add_argument("--busbw-from", type=int, help="show bus bandwidth from this size on")
    parser.add_argument("--ranks", type=int, default=2, help="for bus bandwidth: 2 (n - 1) / n")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    parser.add_argument("--note", action="append", default=[], help="a line above the tables")
    options = parser.parse_args(arguments)
    try:
        series, about = read_series(options.folder)
    except (BadRun, KeyError, json.JSONDecodeError) as error:
        print(f"compare.py: {error if isinstance(error, BadRun) else repr(error)}", file=sys.stderr)
        return 1

    factor = 2 * (options.ranks - 1) / options.ranks
    figures = {name: summarise(pairs, factor) for name, pairs in series.items()}
    sides = [f"collectives: {about['ours']}", f"{options.theirs}: {about['theirs']}"]
    for line in [*options.note, *sides]:
        print(f"* {line}")
    for name, rows in figures.items():
        print(f"\n**{name}**, {len(series[name])} alternating pairs, ratio = collectives / "
              f"{options.theirs}:\n")
        print("\n".join(table(rows, options.theirs, options.busbw_from)))
        print()
        print("\n".join(f"* {line}" for line in in_short(rows, options.busbw_from)))
    if options.json:
        report = {
            "notes": options.note,
            "ours": about["ours"],
            "theirs": f"{options.theirs}: {about['theirs']}",
            "pairs": {name: len(pairs) for name, pairs in series.items()},
            "series": figures,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

//! The command as scripts use it: exit codes, standard output, JSON.

use std::collections::BTreeSet;

use assert_cmd::Command;
use serde_json::Value;

/// The command, on the mock and without what the caller's environment says.
fn collectives(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("collectives").expect("the binary of this crate");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let matters = ["COLLECTIVES_", "NCCL_", "RUST_LOG"].iter().any(|p| text.starts_with(p));
        if matters || text.ends_with("_VISIBLE_DEVICES") {
            command.env_remove(name);
        }
    }
    command.env("COLLECTIVES_BACKEND", "mock").args(arguments).timeout(TIMEOUT);
    command
}

/// Far more than any of these takes, so that what hangs fails.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(120);

/// Standard output of a good run, with standard error empty.
fn output(arguments: &[&str]) -> String {
    let result = collectives(arguments).assert().success().stderr("");
    String::from_utf8(result.get_output().stdout.clone()).expect("text")
}

/// Standard error of a run that ends with `code`, with no output.
fn refusal(arguments: &[&str], code: i32) -> String {
    let result = collectives(arguments).assert().code(code).stdout("");
    String::from_utf8(result.get_output().stderr.clone()).expect("text")
}

/// The table's lines that hold figures, as fields.
fn rows(output: &str) -> Vec<Vec<&str>> {
    let rows = output.lines().filter(|line| !line.starts_with('#'));
    rows.map(|line| line.split_whitespace().collect()).collect()
}

const OPERATIONS: [&str; 9] = [
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "reduce",
    "all_to_all",
    "gather",
    "scatter",
    "send_recv",
];

#[test]
fn help_names_the_commands_and_their_options() {
    let help = output(&["--help"]);
    assert!(help.contains("perf") && help.contains("doctor"), "{help}");
    let help = output(&["perf", "--help"]);
    for option in
        ["--backend", "-n", "-b", "-e", "-f", "--graph", "--sync-each", "--json", "--plot"]
    {
        assert!(help.contains(option), "{option}: {help}");
    }
    for operation in OPERATIONS {
        assert!(help.contains(operation), "{operation}: {help}");
    }
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = output(&["completions", shell]);
        assert!(script.contains("sync-each"), "{shell}");
    }
}

#[test]
fn no_command_is_a_usage_error() {
    collectives(&[]).assert().code(2).stdout("");
}

#[test]
fn arguments_that_do_not_fit_are_usage_errors() {
    for (arguments, words) in [
        (&["all_shuffle"][..], "all_shuffle"),
        (&["all_reduce", "-b", "8T"], "like 8, 64K"),
        (
            &["all_reduce", "-b", "2K", "-e", "1K"],
            "-b is 2048 bytes, more than the 1024 bytes of -e",
        ),
        (&["all_reduce", "-f", "1"], "1"),
        (&["all_reduce", "-n", "0"], "0"),
        (&["all_reduce", "--iters", "0"], "0"),
        (&["all_reduce", "-n", "9"], "-n 9: each rank needs a device, and mock sees 8"),
        (&["broadcast", "-n", "2", "--root", "2"], "--root 2: the ranks are 0 to 1"),
        (&["all_reduce", "--root", "0"], "all_reduce has no root"),
        (&["all_gather", "--op", "sum"], "all_gather does not reduce"),
        (&["all_reduce", "--op", "median"], "sum, prod, max, min, avg"),
        (&["all_reduce", "--dtype", "f128"], "f128"),
        (&["all_reduce", "-e", "64G"], "device 0 has 16384 MiB"),
        (&["all_reduce", "--graph", "--sync-each"], "--sync-each"),
        (
            &["all_reduce", "--registered", "symmetric", "--mode", "one-thread"],
            "--registered symmetric: one thread cannot allocate for several ranks",
        ),
        (&["all_reduce", "--json", "x", "--plot", "x"], "--json and --plot both name x"),
    ] {
        let text = refusal(&[&["perf"], arguments].concat(), 2);
        assert!(text.contains(words), "{arguments:?} said: {text}");
        assert!(text.contains("For more information, try '--help'"), "{arguments:?} said: {text}");
    }
}

#[test]
fn every_operation_is_measured_and_right() {
    for operation in OPERATIONS {
        for ranks in ["1", "2", "3"] {
            let arguments = ["perf", operation, "-b", "8", "-e", "4K", "-n", ranks, "--iters", "9"];
            let output = output(&arguments);
            let rows = rows(&output);
            assert!(rows.len() >= 8, "{operation} of {ranks}: {output}");
            assert!(rows.iter().all(|row| row.len() == 13), "{operation} of {ranks}: {output}");
            for row in &rows {
                assert_eq!(row[8], "0", "{operation} of {ranks}: {output}");
                let in_place = !matches!(operation, "all_to_all" | "send_recv");
                assert_eq!(row[12], if in_place { "0" } else { "N/A" }, "{output}");
            }
            assert!(output.contains("# Out of bounds values : 0 OK\n"), "{output}");
        }
    }
}

#[test]
fn one_thread_drives_all_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("report.json");
    let path = file.to_str().expect("text");
    for operation in OPERATIONS {
        for how in [&[][..], &["--graph"], &["--sync-each"]] {
            let run = ["perf", operation, "-b", "8", "-e", "1K", "-n", "3", "--iters", "9"];
            let mode = ["--mode", "one-thread", "--json", path];
            let output = output(&[&run[..], &mode, how].concat());
            assert!(output.contains("ranks      3, driven by one thread\n"), "{output}");
            let rows = rows(&output);
            assert!(rows.len() >= 6, "{operation} {how:?}: {output}");
            assert!(rows.iter().all(|row| row[8] == "0"), "{operation} {how:?}: {output}");
            let report = std::fs::read_to_string(&file).expect("the report");
            assert!(report.contains("\"mode\": \"one-thread\""), "{report}");
        }
    }
}

/// Ranks as processes need Unix sockets.
#[cfg(unix)]
mod processes {
    use std::{
        fs,
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use serde_json::Value;

    use super::{OPERATIONS, TIMEOUT, collectives, output, rows};

    const MODE: [&str; 2] = ["--mode", "processes"];

    #[test]
    fn every_operation_is_measured_and_right() {
        for operation in OPERATIONS {
            for ranks in RANKS {
                let run = ["perf", operation, "-b", "8", "-e", "1K", "-n", ranks, "--iters", "9"];
                let output = output(&[&run[..], &MODE].concat());
                assert!(
                    output.contains(&format!("ranks      {ranks}, one process each\n")),
                    "{output}"
                );
                let rows = rows(&output);
                assert!(rows.len() >= 6, "{operation} of {ranks}: {output}");
                assert!(rows.iter().all(|row| row[8] == "0"), "{operation} of {ranks}: {output}");
            }
        }
    }

    #[test]
    fn the_report_says_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("report.json");
        let path = file.to_str().expect("text");
        let run = ["perf", "broadcast", "-e", "64", "--graph", "--iters", "5", "--json", path];
        output(&[&run[..], &["-n", RANKS[0]], &MODE].concat());
        let text = fs::read_to_string(&file).expect("the report");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["mode"], "processes");
        assert_eq!(report["results"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn a_rank_that_fails_is_named_with_its_process_and_status() {
        for (action, words) in [
            ("{ out_of_memory = 1 }", &["ended: exit status: 1\n  because: mock mem_alloc"][..]),
            ("'kill'", &[]),
        ] {
            let plan = format!("[[rule]]\nrank = 0\naction = {action}");
            let run = ["perf", "all_reduce", "-e", "64", "-n", RANKS[0]];
            let mut command = collectives(&[&run[..], &MODE].concat());
            let result = command.env("COLLECTIVES_MOCK_FAULTS", plan).assert().code(1);
            let text = String::from_utf8(result.get_output().stderr.clone()).expect("text");
            assert!(text.contains("error: perf: rank 0 failed: process "), "{action}: {text}");
            for words in words {
                assert!(text.contains(words), "{action}: {text}");
            }
        }
    }

    /// Not even one that could catch nothing.
    #[test]
    #[cfg(target_os = "linux")]
    fn nobody_outlives_a_killed_parent() {
        let binary = assert_cmd::cargo::cargo_bin("collectives");
        let endless = ["-b", "8M", "-e", "8M", "--iters", "100000000", "--backend", "mock"];
        let mut parent = Command::new(binary)
            .args(["perf", "all_reduce", "-n", RANKS[0]])
            .args(MODE)
            .args(endless)
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary of this crate");
        let until = Instant::now() + TIMEOUT;
        let wait_for = |found: &dyn Fn() -> bool, what: &str| {
            while !found() {
                assert!(Instant::now() < until, "{what}");
                thread::sleep(Duration::from_millis(5));
            }
        };
        let children = || children_of(parent.id());
        wait_for(&|| !children().is_empty(), "no rank was started");
        let ranks = children();
        parent.kill().expect("it runs");
        parent.wait().expect("it was killed");
        let gone = || ranks.iter().all(|&pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true));
        wait_for(&gone, "ranks live on");
    }

    #[cfg(target_os = "linux")]
    fn children_of(pid: u32) -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        list.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    const RANKS: [&str; 3] = ["1", "2", "3"];
}

#[test]
fn every_type_and_reduce_op_is_right() {
    let types = "i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64 f8e4m3 f8e5m2";
    for dtype in types.split(' ') {
        for op in ["sum", "prod", "max", "min", "avg"] {
            let run =
                ["perf", "reduce_scatter", "-n", "3", "-b", "512", "-e", "1K", "--iters", "5"];
            let output = output(&[&run[..], &["--dtype", dtype, "--op", op]].concat());
            let rows = rows(&output);
            assert_eq!(rows.len(), 2, "{output}");
            for row in rows {
                assert_eq!(row[2..4], [dtype, op], "{output}");
                assert_eq!([row[8], row[12]], ["0", "0"], "{output}");
            }
        }
    }
}

#[test]
fn another_root_is_right() {
    for operation in ["broadcast", "reduce", "gather", "scatter"] {
        let run = ["perf", operation, "-n", "3", "--root", "2", "-e", "1K", "--iters", "5"];
        let output = output(&run);
        for row in rows(&output) {
            assert_eq!([row[4], row[8], row[12]], ["2", "0", "0"], "{operation}: {output}");
        }
    }
}

#[test]
fn graphs_waits_and_registered_buffers_are_right() {
    let ways = [
        &["--graph"][..],
        &["--sync-each"],
        &["--registered", "buffer"],
        &["--registered", "symmetric"],
        &["--registered", "symmetric", "--graph"],
        &["--registered", "symmetric", "--mode", "processes"],
        &["--no-check"],
    ];
    for operation in OPERATIONS {
        for way in ways {
            let run = ["perf", operation, "-n", "2", "-e", "1K", "--iters", "7", "--warmup", "0"];
            let output = output(&[&run[..], way].concat());
            let wrong = if way == ["--no-check"] { "N/A" } else { "0" };
            let rows = rows(&output);
            assert!(rows.iter().all(|row| row[8] == wrong), "{operation} {way:?}: {output}");
        }
    }
}

#[test]
fn the_json_report_keeps_its_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("report.json");
    let path = file.to_str().expect("text");
    let names = |value: &Value| -> BTreeSet<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| (*n).into()).collect() };

    output(&["perf", "reduce", "-n", "2", "-b", "1K", "-e", "4K", "--root", "1", "--json", path]);
    let text = std::fs::read_to_string(&file).expect("the report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        names(&report),
        set(&["backend", "library", "version", "ranks", "mode", "graph", "registered", "results"])
    );
    assert_eq!(report["backend"], "mock");
    assert_eq!(report["library"], Value::Null);
    assert!(report["version"].is_string());
    assert_eq!(report["ranks"], 2);
    assert_eq!(report["mode"], "threads");
    assert_eq!(report["graph"], false);
    assert_eq!(report["registered"], "none");
    let results = report["results"].as_array().expect("a list");
    assert_eq!(results.len(), 3);
    let result = &results[1];
    assert_eq!(
        names(result),
        set(&["op", "bytes", "count", "dtype", "redop", "root", "out_of_place", "in_place"])
    );
    assert_eq!(result["op"], "reduce");
    assert_eq!(result["bytes"], 2048);
    assert_eq!(result["count"], 512);
    assert_eq!(result["dtype"], "f32");
    assert_eq!(result["redop"], "sum");
    assert_eq!(result["root"], 1);
    for place in ["out_of_place", "in_place"] {
        let place = &result[place];
        assert_eq!(
            names(place),
            set(&["time_us", "algbw_gbps", "busbw_gbps", "issue_us", "wrong"])
        );
        let [time, issue] = ["time_us", "issue_us"].map(|name| place[name].as_f64());
        let (time, issue) = (time.expect("a number"), issue.expect("a number"));
        assert!(0.0 < issue && issue <= time, "{issue} of {time}");
        assert_eq!(place["algbw_gbps"], place["busbw_gbps"], "the factor of reduce is 1");
        assert_eq!(place["wrong"], 0);
    }

    let run = ["perf", "all_to_all", "-e", "64", "--no-check", "--graph", "--json", path];
    output(&run);
    let text = std::fs::read_to_string(&file).expect("the report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["graph"], true);
    let result = &report["results"][0];
    assert_eq!(result["in_place"], Value::Null);
    assert_eq!(result["redop"], Value::Null);
    assert_eq!(result["root"], Value::Null);
    assert_eq!(result["out_of_place"]["wrong"], Value::Null);
    assert!(result["out_of_place"]["issue_us"].is_f64());

    output(&["perf", "broadcast", "-e", "64", "--sync-each", "--json", path]);
    let text = std::fs::read_to_string(&file).expect("the report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["results"][0]["out_of_place"]["issue_us"], Value::Null);
}

#[test]
fn an_unwritable_report_fails_before_the_run() {
    let text = refusal(&["perf", "all_reduce", "--json", "/no/such/folder/report.json"], 1);
    assert!(text.starts_with("error: perf: --json /no/such/folder/report.json: "), "{text}");
}

/// The texts of a figure.
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).expect("XML");
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn the_figure_says_what_was_measured_and_how() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("figure.svg");
    let path = file.to_str().expect("text");
    std::fs::write(&file, "the figure before").expect("a file to replace");

    output(&["perf", "reduce", "-n", "3", "-e", "4K", "--iters", "5", "--plot", path]);
    let svg = std::fs::read_to_string(&file).expect("the figure");
    let all = texts(&svg);
    assert!(all[0].starts_with("reduce, mock "), "{all:?}");
    let subtitle = all[1..3].join(" ");
    for words in
        ["3 ranks (threads) · f32 · sum · root 0 · eager · buffers not registered", "mock device 0"]
    {
        assert!(subtitle.contains(words), "{words}: {subtitle}");
    }
    let is_date = |word: &str| {
        let parts: Vec<_> = word.split('-').map(|part| (part.len(), part.parse::<u32>())).collect();
        matches!(parts[..], [(4, Ok(2024..)), (2, Ok(1..=12)), (2, Ok(1..=31))])
    };
    assert!(subtitle.split(' ').any(is_date), "{subtitle}");
    for name in ["out-of-place", "in-place", "issue only, out-of-place"] {
        assert_eq!(all.iter().filter(|text| *text == name).count(), 1, "{name}: {all:?}");
    }
    for label in ["time (µs)", "bandwidth (GB/s)", "16 B", "4 KiB"] {
        assert!(all.iter().any(|text| text == label), "{label}: {all:?}");
    }
    // Three lines of ten sizes, the first two in both panels, and three samples in the legend.
    assert_eq!(svg.matches("<circle ").count(), 2 * 10 + 1);
    assert_eq!(svg.matches("<polygon ").count(), (2 * 10 + 1) + (10 + 1));
    let files = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(files, 1, "no other file is left behind");
}

#[test]
fn a_figure_of_one_size_or_one_placement_is_a_figure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("figure.svg");
    let path = file.to_str().expect("text");
    for (more, circles, polygons) in [
        // Out of place, in place and issue: a line of one point each, and a sample each.
        (&["all_reduce", "-b", "1M", "-e", "1M"][..], 2 + 1, (2 + 1) + (1 + 1)),
        // One rank: no bandwidth, and an axis all the same.
        (&["all_reduce", "-b", "8", "-e", "8", "-n", "1"], 2 + 1, (2 + 1) + (1 + 1)),
        (&["send_recv", "-b", "8", "-e", "8", "--graph"], 2 + 1, 1 + 1),
        // What each operation was waited for has no cost of issuing of its own.
        (&["all_to_all", "-b", "64", "-e", "64", "--sync-each"], 2 + 1, 0),
    ] {
        output(&[&["perf"], more, &["--iters", "5", "--plot", path]].concat());
        let svg = std::fs::read_to_string(&file).expect("the figure");
        let drawn = [svg.matches("<circle ").count(), svg.matches("<polygon ").count()];
        assert_eq!(drawn, [circles, polygons], "{more:?}: {svg}");
        let subtitle = texts(&svg)[1..3].join(" ");
        let words = match more {
            [.., "--graph"] => "captured in a graph",
            [.., "--sync-each"] => "eager, each waited for",
            [.., "1"] => "1 rank ·",
            _ => "2 ranks (threads) ·",
        };
        assert!(subtitle.contains(words), "{more:?}: {subtitle}");
    }
}

#[test]
fn a_figure_that_cannot_be_written_is_refused_before_the_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    std::fs::write(at("file"), "kept").expect("a file");
    let json = at("report.json");
    std::fs::write(&json, "kept").expect("a file");
    for (plot, words) in [
        (at("missing/figure.svg"), "there is no folder "),
        (at("file/figure.svg"), "there is no folder "),
        (at(""), "not a regular file"),
    ] {
        let text = refusal(&["perf", "all_reduce", "--plot", &plot, "--json", &json], 2);
        assert!(text.starts_with(&format!("error: --plot {plot}: {words}")), "{text}");
        assert!(!text.contains(".plot-"), "the temporary file is nobody's concern: {text}");
    }
    for file in [&json, &at("file")] {
        assert_eq!(std::fs::read_to_string(file).expect("it is there"), "kept");
    }
    // Nor is anything left behind by a run that is refused for another reason.
    refusal(&["perf", "all_reduce", "-n", "9", "--plot", &at("figure.svg")], 2);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2);
}

#[test]
fn a_backend_that_cannot_be_opened_is_one_readable_error() {
    let mut command = collectives(&["perf", "all_reduce", "--backend", "nccl"]);
    command.env("COLLECTIVES_NCCL_PATH", "/no/such/libnccl.so.2");
    let result = command.assert().code(1).stdout("");
    let text = String::from_utf8_lossy(&result.get_output().stderr).into_owned();
    assert!(text.starts_with("error: perf: "), "{text}");
    assert!(text.contains("/no/such/libnccl.so.2"), "{text}");
    assert_eq!(text.matches("no such file").count(), 1, "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_rank_that_fails_ends_the_others() {
    // Room for the buffers of one rank, and not of two.
    let script = "ulimit -v 900000; exec \"$0\" perf all_reduce -n 2 -b 256M -e 256M";
    let binary = assert_cmd::cargo::cargo_bin("collectives");
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(binary).env("COLLECTIVES_BACKEND", "mock").timeout(TIMEOUT);
    let result = command.assert().code(1);
    let text = String::from_utf8_lossy(&result.get_output().stderr).into_owned();
    assert!(text.starts_with("error: perf: mock mem_alloc (rank "), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
}

#[test]
fn doctor_tells_people_what_is_selected_and_why() {
    let output = output(&["doctor"]);
    assert!(output.contains("Backend   mock"), "{output}");
    assert!(output.contains("Why       COLLECTIVES_BACKEND=mock"), "{output}");
    for section in ["Devices", "Hardware", "NCCL", "Capabilities", "Environment"] {
        assert!(output.contains(&format!("\n{section}")), "{section}: {output}");
    }
    assert!(output.contains("  COLLECTIVES_BACKEND=mock\n"), "{output}");
}

#[test]
fn doctor_tells_programs_the_same() {
    let report: Value = serde_json::from_str(&output(&["doctor", "--json"])).expect("JSON");
    assert_eq!(report["backend"], "mock");
    assert_eq!(report["reason"], "COLLECTIVES_BACKEND=mock");
    assert_eq!(report["problem"], Value::Null);
    assert_eq!(report["device_list"].as_array().expect("a list").len(), 8);
    assert_eq!(report["capabilities"]["all_reduce"], "native");
    assert_eq!(report["environment"]["COLLECTIVES_BACKEND"], "mock");
    for field in ["platform", "library", "devices"] {
        assert!(!report[field].is_null(), "{field}: {report}");
    }
    for field in ["library", "tried", "problem", "missing", "known_issues", "capabilities"] {
        assert!(report["nccl"].get(field).is_some(), "{field}: {report}");
    }
}

#[test]
fn doctor_fails_where_the_selected_backend_cannot_work() {
    for (name, value, words) in [
        ("COLLECTIVES_BACKEND", "nccl", "/no/such/libnccl.so.2"),
        ("COLLECTIVES_BACKEND", "rccl", "/no/such/librccl.so.1"),
        ("COLLECTIVES_BACKEND", "gloo", "no backend is called 'gloo'"),
        ("COLLECTIVES_MOCK_DEVICES", "none", "COLLECTIVES_MOCK_DEVICES"),
    ] {
        let mut command = collectives(&["doctor", "--json"]);
        command.env("COLLECTIVES_NCCL_PATH", "/no/such/libnccl.so.2");
        command.env("COLLECTIVES_RCCL_PATH", "/no/such/librccl.so.1").env(name, value);
        let result = command.assert().code(1).stderr("");
        let report: Value =
            serde_json::from_slice(&result.get_output().stdout).expect("JSON all the same");
        let problem = report["problem"].as_str().expect("a problem");
        assert!(problem.contains(words), "{name}={value}: {problem}");
    }
}

#[test]
fn logs_stay_out_of_the_output() {
    let mut command = collectives(&["perf", "all_reduce", "-e", "64", "--iters", "3"]);
    let result = command.env("RUST_LOG", "trace").assert().success();
    let text = String::from_utf8_lossy(&result.get_output().stdout).into_owned();
    assert_eq!(rows(&text).len(), 4, "{text}");
    assert!(rows(&text).iter().all(|row| row.len() == 13), "{text}");
}

#[test]
fn falling_back_to_the_mock_is_said_once() {
    let mut command = collectives(&["perf", "all_reduce", "-e", "64", "--iters", "3"]);
    // Hides what this machine may have; without hardware there is nothing to hide.
    command.env_remove("COLLECTIVES_BACKEND");
    for variable in ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"] {
        command.env(variable, "-1");
    }
    let result = command.assert().success();
    let text = String::from_utf8_lossy(&result.get_output().stderr).into_owned();
    assert_eq!(text.matches("CPU mock").count(), 1, "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// RCCL of a release, and HIP, as the mock's library stands for them, in a folder.
#[cfg(target_os = "linux")]
fn rccl() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("librccl.so.1");
    let test = std::env::current_exe().expect("a test has a path");
    let library = test.with_file_name("libcollectives_mock_abi.so");
    std::os::unix::fs::symlink(library, &path).expect("a link");
    (folder, path)
}

#[cfg(target_os = "linux")]
#[test]
fn perf_runs_on_rccl() {
    let (_folder, path) = rccl();
    let run = ["perf", "all_to_all", "--backend", "rccl", "-n", "2", "-e", "64", "--iters", "3"];
    for mode in ["threads", "processes"] {
        let mut command = collectives(&run);
        command.args(["--mode", mode]).env("COLLECTIVES_RCCL_PATH", &path);
        command.env("COLLECTIVES_MOCK_VERSION", "rccl-2.27.7");
        let result = command.assert().success();
        let text = String::from_utf8_lossy(&result.get_output().stdout).into_owned();
        assert!(text.contains("RCCL 2.27.7"), "{text}");
        assert!(!rows(&text).is_empty(), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn doctor_knows_rccl() {
    let (_folder, path) = rccl();
    let mut command = collectives(&["doctor", "--json"]);
    command.env("COLLECTIVES_BACKEND", "rccl").env("COLLECTIVES_RCCL_PATH", &path);
    command.env("COLLECTIVES_MOCK_VERSION", "rccl-2.13.4").env("COLLECTIVES_MOCK_DEVICES", "2");
    let result = command.assert().success().stderr("");
    let report: Value = serde_json::from_slice(&result.get_output().stdout).expect("JSON");
    assert_eq!(report["backend"], "rccl");
    assert_eq!(report["library"]["backend"], "RCCL");
    assert_eq!(report["problem"], Value::Null);
    assert_eq!(report["device_list"].as_array().expect("a list").len(), 2);
    assert_eq!(report["checks"]["backend-rccl"], "note");
    assert!(report["capabilities"]["f8_format"].is_string(), "{report}");
}

//! NCCL's variables: those that change results or hang, those that mean something else than they
//! seem to, and those that mean nothing.

use super::{Check, list};
use crate::doctor::{
    facts::{Facts, version_text},
    finding::{Observation, Severity},
    settings::{Setting, leading_number, parse},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "variable-algorithm",
        about: "NCCL_ALGO or NCCL_PROTO holds a word that NCCL does not know",
        links: &[ENV],
        run: algorithm,
    },
    Check {
        id: "variable-value",
        about: "a variable has a value that NCCL reads as something else",
        links: &[ENV],
        run: value,
    },
    Check {
        id: "variable-risky",
        about: "a variable can hang a job or corrupt its data",
        links: &[ENV],
        run: risky,
    },
    Check {
        id: "variable-changes-results",
        about: "variables change the order of reductions, and so their last bits",
        links: &[
            "https://github.com/NovaSky-AI/SkyRL/pull/143",
            "https://github.com/huggingface/trl/pull/2923",
            ENV,
        ],
        run: changes_results,
    },
    Check {
        id: "variable-unknown",
        about: "this release does not read a variable, which may be misspelt",
        links: &[ENV],
        run: unknown,
    },
    Check {
        id: "variable-retired",
        about: "NCCL has retired a variable",
        links: &[ENV],
        run: retired,
    },
    Check {
        id: "variable-pytorch",
        about: "a variable belongs to PyTorch, and is not read here",
        links: &["https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html"],
        run: pytorch,
    },
    Check {
        id: "conf-file",
        about: "a file sets variables that 'env' does not show",
        links: &["https://github.com/NovaSky-AI/SkyRL/pull/143", ENV],
        run: conf_file,
    },
    Check {
        id: "conf-file-missing",
        about: "NCCL_CONF_FILE names a file that cannot be read",
        links: &[ENV],
        run: conf_file_missing,
    },
    Check {
        id: "conf-file-line",
        about: "NCCL reads a line of a file otherwise than it was meant",
        links: &[ENV],
        run: conf_file_line,
    },
];

/// NVIDIA's page on the variables.
const ENV: &str = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html";

fn algorithm(facts: &Facts) -> Vec<Observation> {
    const ALGORITHMS: &[&str] =
        &["tree", "ring", "collnet", "collnetdirect", "collnetchain", "nvls", "nvlstree", "pat"];
    const PROTOCOLS: &[&str] = &["ll", "ll128", "simple"];
    if !facts.needs_gpus() {
        return Vec::new();
    }
    // Since 2.24 a word that is not known fails the first communicator; before, it was left out.
    let fails = facts.version().is_some_and(|version| version >= 22_400);
    let mut observations = Vec::new();
    for (variable, known) in [("NCCL_ALGO", ALGORITHMS), ("NCCL_PROTO", PROTOCOLS)] {
        let Some(value) = facts.settings.value(variable) else { continue };
        let bad: Vec<&str> = words(value)
            .filter(|word| !known.contains(&word.to_ascii_lowercase().as_str()))
            .collect();
        if bad.is_empty() {
            continue;
        }
        observations.push(Observation::new(
            if fails { facts.of_nccl(Severity::Error) } else { facts.of_nccl(Severity::Warning) },
            format!("{}: NCCL knows no {}", facts.settings.show(variable), bad.join(", ")),
            if fails {
                "since 2.24 an unknown word fails every join with 'invalid usage'"
            } else {
                "before 2.24 an unknown word is silently left out"
            },
            format!("unset {variable}, or take words of {}", known.join(", ")),
        ));
    }
    observations
}

/// The algorithms of a value such as `^tree;allreduce:ring,nvls`.
fn words(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(';')
        .map(|part| part.rsplit(':').next().unwrap_or(part).trim_start_matches('^'))
        .flat_map(|part| part.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// Variables that hold a number.
const NUMBERS: [&str; 36] = [
    "NCCL_BUFFSIZE",
    "NCCL_CGA_CLUSTER_SIZE",
    "NCCL_COLLNET_ENABLE",
    "NCCL_COMM_BLOCKING",
    "NCCL_CROSS_NIC",
    "NCCL_CUMEM_ENABLE",
    "NCCL_CUMEM_HOST_ENABLE",
    "NCCL_DMABUF_ENABLE",
    "NCCL_GRAPH_MIXING_SUPPORT",
    "NCCL_GRAPH_REGISTER",
    "NCCL_GRAPH_STREAM_ORDERING",
    "NCCL_IB_DISABLE",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_QPS_PER_CONNECTION",
    "NCCL_IB_RETRY_CNT",
    "NCCL_IB_TIMEOUT",
    "NCCL_IGNORE_CPU_AFFINITY",
    "NCCL_LAUNCH_ORDER_IMPLICIT",
    "NCCL_LOCAL_REGISTER",
    "NCCL_MAX_CTAS",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_CTAS",
    "NCCL_MIN_NCHANNELS",
    "NCCL_MNNVL_ENABLE",
    "NCCL_NET_GDR_READ",
    "NCCL_NSOCKS_PERTHREAD",
    "NCCL_NTHREADS",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_NET_CHUNKSIZE",
    "NCCL_PXN_DISABLE",
    "NCCL_RAS_ENABLE",
    "NCCL_RUNTIME_CONNECT",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_NTHREADS",
    "NCCL_WIN_ENABLE",
];

/// Variables that hold one word of a few, and whether case matters.
const WORDS: [(&str, &[&str], bool); 6] = [
    ("NCCL_DEBUG", &["NONE", "VERSION", "WARN", "INFO", "ABORT", "TRACE", "ATTN"], false),
    ("NCCL_LAUNCH_MODE", &["PARALLEL", "GROUP"], true),
    ("NCCL_NET_GDR_LEVEL", LEVELS, true),
    ("NCCL_P2P_LEVEL", LEVELS, true),
    ("NCCL_SOCKET_FAMILY", &["AF_INET", "AF_INET6"], true),
    ("NCCL_CHECK_MODE", &["DEFAULT", "DEBUG_LOCAL", "DEBUG_GLOBAL"], false),
];

/// How far apart two devices may be.
const LEVELS: &[&str] = &["LOC", "NVL", "NVB", "C2C", "PIX", "PXB", "P2C", "PXN", "PHB", "SYS"];

fn value(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() {
        return Vec::new();
    }
    let mut observations = Vec::new();
    for name in NUMBERS {
        let Some(Setting { value, .. }) = facts.settings.get(name) else { continue };
        let (number, whole) = leading_number(value);
        if whole {
            continue;
        }
        observations.push(Observation::new(
            facts.of_nccl(Severity::Warning),
            facts.settings.show(name),
            format!(
                "NCCL reads the digits at the start and no more, so this is {number}: words such as \
                 true and yes are 0, and units such as M are left out"
            ),
            format!("set {name} to a plain number"),
        ));
    }
    for (name, known, exact) in WORDS {
        let Some(Setting { value, .. }) = facts.settings.get(name) else { continue };
        let same =
            |word: &&str| if exact { value == word } else { value.eq_ignore_ascii_case(word) };
        // Levels are numbers, too, in old scripts.
        let number = known == LEVELS && value.starts_with(|c: char| c.is_ascii_digit());
        if number || known.iter().any(same) {
            continue;
        }
        observations.push(Observation::new(
            facts.of_nccl(Severity::Warning),
            facts.settings.show(name),
            "NCCL does not know the word and goes on as if the variable were not set",
            format!("take one of {}", known.join(", ")),
        ));
    }
    observations
}

/// A setting that is known for what it does.
struct Risk {
    name: &'static str,
    applies: fn(&Facts, &Setting) -> bool,
    cause: &'static str,
    remedy: &'static str,
}

fn is(setting: &Setting, number: i64) -> bool {
    leading_number(&setting.value).0 == number
}

const RISKS: &[Risk] = &[
    Risk {
        name: "NCCL_COMM_BLOCKING",
        applies: |_, setting| is(setting, 0),
        cause: "it makes every communicator non-blocking, against what its maker asked for: each \
                operation starts a thread and takes several times as long",
        remedy: "unset it",
    },
    Risk {
        name: "NCCL_COMM_ID",
        applies: |_, _| true,
        cause: "every unique id is then this address, so two communicators of one job meet at one \
                port",
        remedy: "unset it, and hand the id of rank 0 to the others",
    },
    Risk {
        name: "NCCL_GRAPH_MIXING_SUPPORT",
        applies: |_, setting| is(setting, 0),
        cause: "a communicator that is used in a graph and outside of it, or in two graphs that run \
                at once, then hangs or mixes data up",
        remedy: "unset it, unless every operation of a communicator is in one graph",
    },
    Risk {
        name: "NCCL_GRAPH_STREAM_ORDERING",
        applies: |_, setting| is(setting, 0),
        cause: "operations of several communicators that are captured are no longer put in one \
                order, and may deadlock",
        remedy: "unset it, unless all operations run on one stream",
    },
    Risk {
        name: "NCCL_IB_GID_INDEX",
        applies: |facts, _| facts.version().is_some_and(|version| version >= 22_100),
        cause: "from 2.21 on NCCL finds the index itself; a fixed one fails where the machine's table \
                differs (ibv_modify_qp: Invalid argument)",
        remedy: "unset it",
    },
    Risk {
        name: "NCCL_IB_TIMEOUT",
        applies: |_, setting| !(1..32).contains(&leading_number(&setting.value).0),
        cause: "0, and 32 or more, mean for ever: a broken link hangs the job instead of failing it",
        remedy: "unset it, or take 1 to 31 (the default is 20)",
    },
    Risk {
        name: "NCCL_LEGACY_CUDA_REGISTER",
        applies: |_, setting| is(setting, 1),
        cause: "registering memory of cudaMalloc synchronises behind the caller's back, and can hang",
        remedy: "unset it, and allocate what is registered through NCCL",
    },
    Risk {
        name: "NCCL_MULTI_RANK_GPU_ENABLE",
        applies: |_, setting| is(setting, 1),
        cause: "several ranks on one device take its multiprocessors from each other, and hang where \
                they don't suffice",
        remedy: "unset it, and give each rank a device",
    },
    Risk {
        name: "NCCL_PROTO",
        applies: |_, setting| {
            !setting.value.contains('^')
                && words(&setting.value).any(|word| word.eq_ignore_ascii_case("LL128"))
        },
        cause: "LL128 on a platform that does not keep 128 bytes together corrupts data; NCCL itself \
                knows where it may be used",
        remedy: "unset it",
    },
];

fn risky(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() {
        return Vec::new();
    }
    let set = RISKS.iter().filter_map(|risk| Some((risk, facts.settings.get(risk.name)?)));
    set.filter(|(risk, setting)| (risk.applies)(facts, setting))
        .map(|(risk, _)| {
            let severity = facts.of_nccl(Severity::Warning);
            Observation::new(severity, facts.settings.show(risk.name), risk.cause, risk.remedy)
        })
        .collect()
}

fn changes_results(facts: &Facts) -> Vec<Observation> {
    const NAMES: [&str; 14] = [
        "NCCL_ALGO",
        "NCCL_BUFFSIZE",
        "NCCL_COLLNET_ENABLE",
        "NCCL_LL128_NTHREADS",
        "NCCL_MAX_CTAS",
        "NCCL_MAX_NCHANNELS",
        "NCCL_MIN_CTAS",
        "NCCL_MIN_NCHANNELS",
        "NCCL_NTHREADS",
        "NCCL_NVLS_ENABLE",
        "NCCL_PAT_ENABLE",
        "NCCL_PROTO",
        "NCCL_THREAD_THRESHOLDS",
        "NCCL_TUNER_PLUGIN",
    ];
    let set: Vec<String> = NAMES
        .iter()
        .filter(|name| facts.settings.get(name).is_some())
        .map(|name| facts.settings.show(name))
        .collect();
    if set.is_empty() || !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        set.join(", "),
        "they choose algorithm, protocol and channels, and so the order of sums: last bits and times \
         differ, and if ranks have different values the job can hang",
        "set them alike on every rank, and note them beside results; NCCL chooses well without them",
    )]
}

/// PyTorch's variables that look like NCCL's.
const PYTORCH: [&str; 4] =
    ["NCCL_ASYNC_ERROR_HANDLING", "NCCL_BLOCKING_WAIT", "NCCL_DESYNC_DEBUG", "NCCL_ENABLE_TIMING"];

/// What build scripts and images set: nothing reads it at run time.
const OF_BUILDS: [&str; 8] = [
    "NCCL_DIR",
    "NCCL_HOME",
    "NCCL_INCLUDE_DIR",
    "NCCL_LIB_DIR",
    "NCCL_LIBRARY",
    "NCCL_PATH",
    "NCCL_ROOT",
    "NCCL_VERSION",
];

fn unknown(facts: &Facts) -> Vec<Observation> {
    // The names stand in the library itself, so this list is that of the very release.
    let Some(file) = facts.library_file().filter(|file| !file.variables.is_empty()) else {
        return Vec::new();
    };
    let release = facts.version().map_or_else(String::new, version_text);
    let read = |name: &str| {
        file.variables.contains(name)
            || PYTORCH.contains(&name)
            || OF_BUILDS.contains(&name)
            || RETIRED.iter().any(|(retired, ..)| *retired == name)
            // A slip in a file, which has a check of its own.
            || name.contains(char::is_whitespace)
    };
    let mut observations = Vec::new();
    let mut foreign = Vec::new();
    let set = facts.settings.of_libraries().filter(|(name, _)| name.starts_with("NCCL_"));
    for (name, _) in set.filter(|(name, _)| !read(name)) {
        let near = file
            .variables
            .iter()
            .map(|known| (strsim::damerau_levenshtein(name, known), known))
            .filter(|(distance, _)| *distance <= TYPO)
            .min_by_key(|(distance, _)| *distance);
        match near {
            Some((_, known)) => observations.push(Observation::new(
                facts.of_nccl(Severity::Warning),
                facts.settings.show(name),
                format!("NCCL {release} reads no variable of that name, but {known}"),
                format!("did you mean {known}?"),
            )),
            None => foreign.push(facts.settings.show(name)),
        }
    }
    if !foreign.is_empty() {
        observations.push(Observation::new(
            Severity::Note,
            foreign.join(", "),
            format!(
                "NCCL {release} reads no variable of that name; a plugin, or another release, may"
            ),
            "unset what nothing reads",
        ));
    }
    observations
}

/// How many letters a slip of the hand changes.
const TYPO: usize = 2;

/// What was retired, when, and what to take instead.
const RETIRED: [(&str, &str, &str); 9] = [
    ("NCCL_CHECKS_DISABLE", "does nothing since 2.2.12", "unset it"),
    ("NCCL_IB_CUDA_SUPPORT", "is gone since 2.4.0", "NCCL_NET_GDR_LEVEL"),
    ("NCCL_IB_GDR_LEVEL", "is gone since 2.4.0", "NCCL_NET_GDR_LEVEL"),
    ("NCCL_LAUNCH_MODE", "is retired since 2.9", "unset it"),
    ("NCCL_LL_THRESHOLD", "is gone since 2.5", "NCCL_PROTO, or nothing"),
    ("NCCL_MAX_NRINGS", "is an alias since 2.5", "NCCL_MAX_CTAS"),
    ("NCCL_MIN_NRINGS", "is an alias since 2.5", "NCCL_MIN_CTAS"),
    ("NCCL_SINGLE_RING_THRESHOLD", "is gone since 2.3", "unset it"),
    ("NCCL_TREE_THRESHOLD", "is gone since 2.5", "NCCL_ALGO, or nothing"),
];

fn retired(facts: &Facts) -> Vec<Observation> {
    let set = RETIRED.iter().filter(|(name, ..)| facts.settings.get(name).is_some());
    set.filter(|_| facts.needs_gpus())
        .map(|(name, since, instead)| {
            Observation::new(
                Severity::Note,
                facts.settings.show(name),
                format!(
                    "it {since}, so it does not do what the script that sets it was written for"
                ),
                format!("instead: {instead}"),
            )
        })
        .collect()
}

fn pytorch(facts: &Facts) -> Vec<Observation> {
    let own = PYTORCH.into_iter().filter(|name| facts.settings.get(name).is_some());
    let set: Vec<String> = own.map(|name| facts.settings.show(name)).collect();
    if set.is_empty() || !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        set.join(", "),
        "PyTorch's process group reads them (newer releases as TORCH_NCCL_…); NCCL and this library \
         do not",
        "use deadlines of this library: JoinConfig's for joining, a stream's for waiting",
    )]
}

fn conf_file(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() {
        return Vec::new();
    }
    let files = facts.settings.files.iter();
    files
        .filter_map(|file| {
            let lines = file.lines.iter().flatten().filter_map(|line| parse(line));
            let set: Vec<String> = lines
                .map(|(name, value)| {
                    let wins = facts
                        .settings
                        .get(name)
                        .is_some_and(|setting| setting.file.as_ref() == Some(&file.path));
                    let note = if wins { "" } else { " (overruled)" };
                    format!("{name}={value}{note}")
                })
                .collect();
            (!set.is_empty()).then(|| {
                Observation::new(
                    Severity::Note,
                    format!("{} sets {}", file.path.display(), list(&set, 8)),
                    "NCCL sets them in every process of this machine, and no env command shows \
                     them; other machines have other files",
                    "have the same file on every machine; the environment overrules it",
                )
            })
        })
        .collect()
}

fn conf_file_missing(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() {
        return Vec::new();
    }
    let files = facts.settings.files.iter().filter(|file| file.demanded && file.lines.is_none());
    files
        .map(|file| {
            let home = file.path.starts_with("~");
            Observation::new(
                facts.of_nccl(Severity::Warning),
                format!("NCCL_CONF_FILE={}: it can't be read", file.path.display()),
                if home {
                    "NCCL does not know ~, and goes on without the file and without ~/.nccl.conf"
                } else {
                    "NCCL goes on without the file, without a word, and without ~/.nccl.conf"
                },
                "give the whole path of a file that every rank can read",
            )
        })
        .collect()
}

fn conf_file_line(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() {
        return Vec::new();
    }
    let mut observations = Vec::new();
    for file in &facts.settings.files {
        for line in file.lines.iter().flatten() {
            let cause = match parse(line) {
                _ if line.trim().is_empty() || line.starts_with('#') => continue,
                None => "a line without = is left out",
                Some((name, _)) if name.contains(char::is_whitespace) => {
                    "the space is part of the name, so another variable is set"
                }
                Some((_, value)) if value.ends_with('\r') => {
                    "the line ends as on Windows (CR LF), and the CR is part of the value"
                }
                Some((_, value)) if value.contains('#') || value != value.trim() => {
                    "a comment or space behind the value is part of it"
                }
                Some((_, value)) if value.starts_with(['"', '\'']) => {
                    "quotes are part of the value"
                }
                Some(_) => continue,
            };
            observations.push(Observation::new(
                facts.of_nccl(Severity::Warning),
                format!("{}: {line}", file.path.display()),
                cause,
                "write NAME=value, and comments on lines of their own",
            ));
        }
    }
    observations
}

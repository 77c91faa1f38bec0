//! Which NCCL is opened, which others there are, and what is known of it.

use std::path::Path;

use collectives_nccl_abi::{FileInfo, Vendor};

use super::{Check, list};
use crate::doctor::{
    facts::{Copy, Facts, FoundBy, Wheel, version_text},
    finding::{Observation, Severity},
    probe::{Issue, Tried},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "library-not-found",
        about: "no NCCL is found, wherever it is searched",
        links: &["https://github.com/vllm-project/vllm/issues/4312"],
        run: not_found,
    },
    Check {
        id: "library-variable",
        about: "a variable names an NCCL that can't be used",
        links: &[
            "https://github.com/vllm-project/vllm/issues/4077",
            "https://github.com/vllm-project/vllm/issues/4312",
        ],
        run: variable,
    },
    Check {
        id: "library-unloadable",
        about: "a file was found, and the dynamic loader refuses it",
        links: &[
            "https://github.com/vllm-project/vllm/issues/4312",
            "https://github.com/NVIDIA/nccl/issues/1784",
        ],
        run: unloadable,
    },
    Check {
        id: "library-variables-disagree",
        about: "two variables name different libraries",
        links: &["https://github.com/vllm-project/vllm/issues/15525"],
        run: variables_disagree,
    },
    Check {
        id: "library-shadowed",
        about: "the NCCL that is opened is older than that of the Python environment",
        links: &[
            "https://github.com/verl-project/verl/pull/6621",
            "https://github.com/NVIDIA/nccl/issues/2289",
        ],
        run: shadowed,
    },
    Check {
        id: "library-several",
        about: "there are several releases of NCCL where programs look for it",
        links: &[
            "https://github.com/pytorch/pytorch/issues/119932",
            "https://github.com/rapidsai/cugraph/issues/4465",
        ],
        run: several,
    },
    Check {
        id: "library-mapped-twice",
        about: "two copies of NCCL are in one process",
        links: &[
            "https://github.com/pytorch/pytorch/issues/42517",
            "https://github.com/meta-pytorch/torchcomms/issues/2665",
        ],
        run: mapped_twice,
    },
    Check {
        id: "library-preloaded",
        about: "NCCL was in the process before it was asked for",
        links: &["https://github.com/kvcache-ai/Mooncake/pull/3287"],
        run: preloaded,
    },
    Check {
        id: "library-lacks-functions",
        about: "a file named like NCCL lacks functions that every release has",
        links: &[
            "https://github.com/NVIDIA/nccl/issues/1180",
            "https://github.com/ai-dynamo/nixl/issues/1011",
        ],
        run: lacks_functions,
    },
    Check {
        id: "library-lacks-features",
        about: "the release is too old for some operations",
        links: &["https://github.com/vllm-project/vllm/pull/25605"],
        run: lacks_features,
    },
    Check {
        id: "library-known-issue",
        about: "this release of NCCL has known faults",
        links: &[],
        run: known_issue,
    },
    Check {
        id: "library-no-capture",
        about: "the release, or its CUDA, is too old for graphs",
        links: &[
            "https://github.com/vllm-project/vllm/issues/5679",
            "https://github.com/NVIDIA/nccl/issues/1679",
        ],
        run: no_capture,
    },
    Check {
        id: "library-needs-variable",
        about: "only a variable leads to the library, so a child that loses it opens another one",
        links: &["https://github.com/vllm-project/vllm/issues/15525"],
        run: needs_variable,
    },
    Check {
        id: "library-soname-only",
        about: "there is a libnccl.so.2, and no libnccl.so for programs that ask for that name",
        links: &[
            "https://github.com/vllm-project/vllm/pull/3661",
            "https://github.com/vllm-project/vllm/issues/4767",
        ],
        run: soname_only,
    },
    Check {
        id: "wheels-overwrite",
        about: "two Python packages of NCCL own one file",
        links: &[
            "https://github.com/pytorch/pytorch/issues/186591",
            "https://github.com/marin-community/marin/issues/7344",
        ],
        run: wheels_overwrite,
    },
    Check {
        id: "wheel-changed",
        about: "NCCL's file is not the one that its Python package installed",
        links: &["https://github.com/marin-community/marin/issues/7344"],
        run: wheel_changed,
    },
    Check {
        id: "nccl-version-variable",
        about: "NCCL_VERSION names another release than the library's",
        links: &["https://github.com/vllm-project/vllm/issues/46097"],
        run: version_variable,
    },
];

/// What was refused because a variable demanded it.
fn demanded(facts: &Facts) -> Option<&Tried> {
    let variables = Vendor::NCCL.path_variables;
    facts.nccl.tried.iter().find(|tried| variables.contains(&tried.source.as_str()))
}

/// How bad it is that there is no library: nothing where nobody needs one.
fn severity_of_none(facts: &Facts) -> Option<Severity> {
    if facts.needs_nccl() {
        return Some(Severity::Error);
    }
    (!facts.platform.nvidia.found.is_empty()).then_some(Severity::Note)
}

fn not_found(facts: &Facts) -> Vec<Observation> {
    let nccl = &facts.nccl;
    let nothing = nccl.library.is_none() && !nccl.tried.iter().any(|tried| tried.present);
    let searched = demanded(facts).is_none() && !nccl.tried.is_empty();
    let Some(severity) = severity_of_none(facts).filter(|_| nothing && searched) else {
        return Vec::new();
    };
    let tried = nccl.tried.iter().map(|Tried { path, source, refused, .. }| {
        format!("{} ({source}: {refused})", path.display())
    });
    vec![Observation::new(
        severity,
        format!("tried {}", list(&tried.collect::<Vec<_>>(), 12)),
        "NCCL is opened at run time; it is neither on the loader's path, nor in the Python \
         environment, nor in the CUDA toolkit",
        nccl.problem.clone().unwrap_or_else(|| Vendor::NCCL.advice.to_owned()),
    )]
}

fn variable(facts: &Facts) -> Vec<Observation> {
    let Some(Tried { path, source, refused, .. }) = demanded(facts) else { return Vec::new() };
    vec![Observation::new(
        facts.of_nccl(Severity::Error),
        format!("{source}={}: {refused}", path.display()),
        format!(
            "a path in a variable is binding: no other library is taken instead. {}",
            why_refused(refused)
        ),
        format!("correct {source}, or unset it so that the library is searched for"),
    )]
}

fn unloadable(facts: &Facts) -> Vec<Observation> {
    let present = facts.nccl.tried.iter().filter(|tried| tried.present);
    let refused = present.filter(|tried| demanded(facts) != Some(tried));
    let severity = match facts.library() {
        Some(_) => facts.of_nccl(Severity::Warning),
        None => facts.of_nccl(Severity::Error),
    };
    refused
        .map(|Tried { path, source, refused, .. }| {
            let skipped = facts.library().and_then(|library| library.path.as_ref()).map_or_else(
                || "nothing is left to open".to_owned(),
                |path| format!("{} is opened instead", path.display()),
            );
            Observation::new(
                severity,
                format!("{} ({source}): {refused}", path.display()),
                format!("{}; {skipped}", why_refused(refused)),
                "install that NCCL again, or remove it",
            )
        })
        .collect()
}

/// What lies behind a refusal.
fn why_refused(refused: &str) -> &'static str {
    const WORDS: [(&str, &str); 9] = [
        ("GLIBC", "It was built for a newer C or C++ library than this system's"),
        ("CXXABI", "It was built for a newer C++ library than this system's"),
        ("cannot open shared object file", "A library that it depends on is missing"),
        ("undefined symbol", "It depends on a library that is there in another version"),
        ("truncated", "A download or a full disk left a part of it"),
        ("built for", "It is for another kind of processor"),
        ("no such file", "There is no such file, on this machine or in this container"),
        ("lacks", "It has the name and not the functions: a stub, or another library"),
        ("linker script", "It is a text for the linker that names the real file"),
    ];
    let known = WORDS.iter().find(|(word, _)| refused.contains(word));
    known.map_or("The message says what is wrong with it", |(_, why)| why)
}

fn variables_disagree(facts: &Facts) -> Vec<Observation> {
    let set: Vec<(&str, &str)> = Vendor::NCCL
        .path_variables
        .iter()
        .filter_map(|&name| Some((name, facts.settings.value(name)?)))
        .collect();
    let Some(((first, path), rest)) = set.split_first() else { return Vec::new() };
    if rest.iter().all(|(_, other)| other == path) {
        return Vec::new();
    }
    let shown: Vec<String> = set.iter().map(|(name, path)| format!("{name}={path}")).collect();
    vec![Observation::new(
        facts.of_nccl(Severity::Warning),
        shown.join(", "),
        format!(
            "{first} wins here, while the engines read their own variable: ranks of one job, or two \
             libraries of one process, end up with different releases"
        ),
        "set all of them to one file, or only one of them",
    )]
}

/// The newest copy of the Python environment, where the library in use is older and not from there.
fn newer_wheel(facts: &Facts) -> Option<&Copy> {
    let used = facts.library()?;
    let path = used.path.as_deref()?;
    let asked = Vendor::NCCL.path_variables.contains(&used.found_by.as_str());
    let own = |copy: &&Copy| copy.found_by.contains(&FoundBy::Python);
    if asked || facts.copies.iter().filter(own).any(|copy| copy.path == path) {
        return None;
    }
    let wheels = facts.copies.iter().filter(own);
    let newest = wheels.max_by_key(|copy| copy.version())?;
    (newest.version()? > used.version.code()).then_some(newest)
}

fn shadowed(facts: &Facts) -> Vec<Observation> {
    let (Some(used), Some(wheel)) = (facts.library(), newer_wheel(facts)) else {
        return Vec::new();
    };
    let path = used.path.as_ref().map_or_else(String::new, |path| format!(", {}", path.display()));
    vec![Observation::new(
        facts.of_nccl(Severity::Warning),
        format!(
            "NCCL {}{path} ({}) is opened; the Python environment has {}",
            used.version,
            used.found_by,
            wheel.show()
        ),
        "a library on the loader's path comes before those of packages, so the release that pip \
         shows is not the one that runs",
        format!(
            "set COLLECTIVES_NCCL_PATH={}, or take the older one off the loader's path",
            wheel.path.display()
        ),
    )]
}

fn several(facts: &Facts) -> Vec<Observation> {
    let copies: Vec<&Copy> = facts.copies.iter().filter(|copy| copy.version().is_some()).collect();
    let mut releases: Vec<u32> = copies.iter().filter_map(|copy| copy.version()).collect();
    releases.sort_unstable();
    releases.dedup();
    if releases.len() < 2 || newer_wheel(facts).is_some() {
        return Vec::new();
    }
    let shown: Vec<String> = copies.iter().map(|copy| copy.show()).collect();
    let used = facts.library().and_then(|library| library.path.as_ref()).map_or_else(
        || "none of them is opened".to_owned(),
        |path| format!("{} is opened", path.display()),
    );
    vec![Observation::new(
        Severity::Note,
        format!("{} files of {} releases: {}", copies.len(), releases.len(), shown.join("; ")),
        format!(
            "{used}; a program that searches in another order opens another one, and ranks of \
             different releases don't connect"
        ),
        "keep one, or set COLLECTIVES_NCCL_PATH on every rank to the one that is meant",
    )]
}

fn mapped_twice(facts: &Facts) -> Vec<Observation> {
    let mapped = &facts.nccl.mapped;
    if mapped.len() < 2 {
        return Vec::new();
    }
    let paths: Vec<String> = mapped.iter().map(|path| path.display().to_string()).collect();
    vec![Observation::new(
        facts.of_nccl(Severity::Warning),
        format!("one process holds {}", paths.join(" and ")),
        "each copy has groups and communicators of its own: a group of one does not hold the calls \
         of the other, and both take memory on the device",
        "have one copy: uninstall the other, or set COLLECTIVES_NCCL_PATH to the one that is \
         already there",
    )]
}

fn preloaded(facts: &Facts) -> Vec<Observation> {
    let named = facts.settings.value("LD_PRELOAD").filter(|list| list.contains("nccl"));
    let already = facts.library().filter(|library| library.found_by == "already in the process");
    if named.is_none() && already.is_none() {
        return Vec::new();
    }
    let path = already.and_then(|library| library.path.as_ref());
    vec![Observation::new(
        Severity::Note,
        match (named, path) {
            (Some(_), _) => facts.settings.show("LD_PRELOAD"),
            (None, path) => path.map_or_else(String::new, |path| path.display().to_string()),
        },
        "whoever asks for libnccl.so.2 by name gets the copy that is in the process already, \
         whatever the paths say",
        "unset LD_PRELOAD if another copy is meant",
    )]
}

fn lacks_functions(facts: &Facts) -> Vec<Observation> {
    let told = |path: &Path| {
        let refused = facts.nccl.tried.iter();
        refused
            .filter(|tried| tried.present)
            .any(|tried| tried.path.canonicalize().ok().as_deref() == Some(path))
    };
    let copies = facts.copies.iter().filter(|copy| !told(&copy.path));
    copies
        .filter_map(|copy| {
            let missing = copy.file.as_ref().ok()?.missing.as_ref()?;
            Some(Observation::new(
                facts.of_nccl(Severity::Warning),
                format!("{} {missing}", copy.path.display()),
                "it has NCCL's name and not its functions; where it is found first, programs fail \
                 with an undefined symbol or run against a stub",
                "remove it, or take its folder off the loader's path",
            ))
        })
        .collect()
}

fn lacks_features(facts: &Facts) -> Vec<Observation> {
    let Some(library) = facts.library() else { return Vec::new() };
    let needs =
        facts.nccl.capability_list.iter().filter(|(_, support)| support.starts_with("needs "));
    let needs: Vec<String> = needs.map(|(name, support)| format!("{name} {support}")).collect();
    if needs.is_empty() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("NCCL {}: {}", library.version, list(&needs, 12)),
        "what a release lacks is refused by name, before any rank starts",
        "install a newer NCCL where a program needs one of these",
    )]
}

fn known_issue(facts: &Facts) -> Vec<Observation> {
    let Some(library) = facts.library() else { return Vec::new() };
    let ras_is_off = facts.settings.number("NCCL_RAS_ENABLE") == Some(0);
    let devices: Vec<&str> = facts
        .selected
        .device_list
        .iter()
        .map(|device| device.name.as_str())
        .chain(facts.platform.nvidia.found.iter().filter_map(|device| device.name.as_deref()))
        .collect();
    let issues = facts.nccl.known_issues.iter().filter(|issue| !issue.guarded);
    issues
        .filter_map(|Issue { condition, effect, remedy, link, .. }| {
            let ras = remedy.contains("NCCL_RAS_ENABLE=0");
            if ras && ras_is_off {
                return None;
            }
            // Some are of one model only, and of several nodes, which can't be seen from here.
            let model = MODELS.iter().find(|model| condition.contains(**model));
            let met = model.is_some_and(|model| devices.iter().any(|name| name.contains(model)));
            if model.is_some() && !met {
                return None;
            }
            let elsewhere = condition.contains("nodes");
            let severity =
                if elsewhere { Severity::Note } else { facts.of_nccl(Severity::Warning) };
            let remedy = if remedy.is_empty() { "use another release" } else { remedy.as_str() };
            Some(
                Observation::new(
                    severity,
                    format!("NCCL {}: {condition}: {effect}", library.version),
                    "users of this release have reported it; a program that does not do this is safe",
                    remedy,
                )
                .with_link(link),
            )
        })
        .collect()
}

/// The models that issues are about.
const MODELS: [&str; 2] = ["RTX PRO 6000", "GB300"];

fn no_capture(facts: &Facts) -> Vec<Observation> {
    let Some(library) = facts.library() else { return Vec::new() };
    let toolkit = facts.library_file().and_then(|file: &FileInfo| file.toolkit);
    let found = match toolkit {
        _ if library.version.code() < FIRST_CAPTURE => format!("NCCL {}", library.version),
        Some((major, minor)) if (major, minor) < (11, 3) => {
            format!("NCCL {} was built with CUDA {major}.{minor}", library.version)
        }
        _ => return Vec::new(),
    };
    vec![Observation::new(
        facts.of_nccl(Severity::Warning),
        found,
        "capturing an operation into a graph needs NCCL 2.9.6, built with CUDA 11.3",
        "install a newer NCCL; without graphs this one works",
    )]
}

/// NCCL 2.9.6.
const FIRST_CAPTURE: u32 = 20_906;

/// The variable without which the library in use would not be found.
fn leading_variable(facts: &Facts) -> Option<&'static str> {
    let used = facts.library()?;
    let variables = Vendor::NCCL.path_variables;
    if let Some(&variable) = variables.iter().find(|name| **name == used.found_by) {
        return Some(variable);
    }
    let copy = facts.copies.iter().find(|copy| Some(&copy.path) == used.path.as_ref())?;
    if used.found_by != "dynamic loader" || copy.found_by.contains(&FoundBy::Loader(None)) {
        return None;
    }
    copy.found_by.iter().find_map(|by| match by {
        FoundBy::Loader(variable) => *variable,
        FoundBy::Python | FoundBy::Toolkit | FoundBy::Variable(_) => None,
    })
}

fn needs_variable(facts: &Facts) -> Vec<Observation> {
    let (Some(used), Some(variable)) = (facts.library(), leading_variable(facts)) else {
        return Vec::new();
    };
    let without = facts.copies.iter().find(|copy| {
        copy.file.is_ok()
            && copy
                .found_by
                .iter()
                .any(|by| matches!(by, FoundBy::Loader(None) | FoundBy::Python | FoundBy::Toolkit))
    });
    if without.is_some_and(|copy| Some(&copy.path) == used.path.as_ref()) {
        return Vec::new();
    }
    let (severity, instead) = match without {
        Some(copy) if copy.version() != Some(used.version.code()) => {
            (facts.of_nccl(Severity::Warning), format!("opens {}", copy.show()))
        }
        Some(copy) => (Severity::Note, format!("opens {}", copy.show())),
        None => (Severity::Note, "finds none".into()),
    };
    vec![Observation::new(
        severity,
        format!("NCCL {} is found through {} alone", used.version, facts.settings.show(variable)),
        format!(
            "a child that is started with a cleaned environment (sudo, ssh, mpirun, a worker of Ray \
             or Slurm) loses the variable, and {instead}"
        ),
        format!(
            "hand {variable} on (mpirun -x, sudo --preserve-env, the launcher's own list), or \
             install the library where the loader looks"
        ),
    )]
}

fn soname_only(facts: &Facts) -> Vec<Observation> {
    let Some(path) = facts.library().and_then(|library| library.path.as_ref()) else {
        return Vec::new();
    };
    let mut folders = facts.loader_folders.iter().map(|(folder, _)| folder.as_path());
    let beside = path.parent().is_some_and(|folder| folder.join(Vendor::NCCL.dev_name).exists());
    if beside || folders.any(|folder| folder.join(Vendor::NCCL.dev_name).exists()) {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("{} has no libnccl.so beside it, and none is on the loader's path", path.display()),
        "Python packages and run-time packages bring the versioned name only; this program asks for \
         that, but cudarc and programs that are linked with -lnccl ask for the other",
        "nothing for this program; for the others, a link libnccl.so to the file, or the \
         development package",
    )]
}

/// The wheels that write one file, by file.
fn wheels_by_file(facts: &Facts) -> Vec<Vec<&Wheel>> {
    let mut files: Vec<Vec<&Wheel>> = Vec::new();
    for wheel in &facts.wheels {
        match files.iter_mut().find(|wheels| wheels[0].library == wheel.library) {
            Some(wheels) => wheels.push(wheel),
            None => files.push(vec![wheel]),
        }
    }
    files
}

fn show_wheels(wheels: &[&Wheel]) -> String {
    let shown: Vec<String> =
        wheels.iter().map(|wheel| format!("{} {}", wheel.package, wheel.version)).collect();
    shown.join(" and ")
}

fn wheels_overwrite(facts: &Facts) -> Vec<Observation> {
    let shared = wheels_by_file(facts).into_iter().filter(|wheels| wheels.len() > 1);
    shared
        .map(|wheels| {
            let first = wheels[0];
            let owner = wheels
                .iter()
                .find(|wheel| wheel.recorded.is_some() && wheel.recorded == wheel.size);
            let now = match (owner, first.size) {
                (_, None) => "the file is gone, with whichever was uninstalled".to_owned(),
                (Some(owner), _) => format!("the file is that of {}", owner.package),
                (None, _) => "the file is that of none of them".to_owned(),
            };
            Observation::new(
                facts.of_nccl(Severity::Warning),
                format!("{} both write {}", show_wheels(&wheels), first.library.display()),
                format!("the last one installed wins, and pip shows both; {now}"),
                format!(
                    "uninstall all of them in {}, then install the one for the driver's CUDA",
                    first.site_packages.display()
                ),
            )
        })
        .collect()
}

fn wheel_changed(facts: &Facts) -> Vec<Observation> {
    let alone = wheels_by_file(facts).into_iter().filter(|wheels| wheels.len() == 1);
    alone
        .filter_map(|wheels| {
            let wheel = wheels[0];
            let release = facts
                .copies
                .iter()
                .find(|copy| wheel.library.canonicalize().ok().as_ref() == Some(&copy.path))
                .and_then(Copy::version)
                .map(version_text);
            let other = release.filter(|release| !wheel.version.starts_with(release.as_str()));
            let what = match (wheel.size, wheel.recorded, other) {
                (None, _, _) => "is gone".to_owned(),
                (_, _, Some(release)) => format!("is NCCL {release}"),
                (Some(size), Some(recorded), None) if size != recorded => {
                    format!("has {size} bytes, and the package brought {recorded}")
                }
                _ => return None,
            };
            Some(Observation::new(
                facts.of_nccl(Severity::Warning),
                format!("{} {}: {} {what}", wheel.package, wheel.version, wheel.library.display()),
                "something else replaced or removed it: another package that brings the same file, \
                 or a copy by hand; pip goes on showing the old release",
                format!("pip install --force-reinstall {}=={}", wheel.package, wheel.version),
            ))
        })
        .collect()
}

fn version_variable(facts: &Facts) -> Vec<Observation> {
    let (Some(value), Some(library)) = (facts.settings.value("NCCL_VERSION"), facts.library())
    else {
        return Vec::new();
    };
    // Images write the package's version: 2.28.9-1.
    let told = value.split(['-', '+']).next().unwrap_or(value);
    if told == library.version.to_string() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("NCCL_VERSION={value}, and the library is {}", library.version),
        "images set the variable when they are built; nothing reads it, and it stays when the \
         library is replaced",
        "believe the library; unset the variable where it misleads",
    )]
}

//! Which backend was decided on, and whether opening it ended well.

use std::ffi::c_int;

use collectives::BackendName;
use collectives_nccl_abi::{Flavour, quirks};

use super::{Check, UNUSABLE};
use crate::doctor::{
    facts::Facts,
    finding::{Observation, Severity},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "backend-name",
        about: "COLLECTIVES_BACKEND names no backend",
        links: &[],
        run: name,
    },
    Check {
        id: "backend-two-vendors",
        about: "NVIDIA and AMD devices can be used, and nothing says which are meant",
        links: &["https://github.com/meta-pytorch/torchcomms/issues/56"],
        run: two_vendors,
    },
    Check {
        id: "backend-rccl",
        about: "RCCL is selected; its backend has never run on AMD hardware",
        links: &["https://github.com/ROCm/hipfort/issues/83"],
        run: rccl,
    },
    Check {
        id: "rccl-known-issue",
        about: "this release of RCCL has known faults",
        links: &[],
        run: rccl_known_issue,
    },
    Check {
        id: "backend-mock",
        about: "the CPU mock runs because there is no GPU to use",
        links: &["https://github.com/ai-dynamo/dynamo/pull/13547"],
        run: mock,
    },
    Check {
        id: "probe-died",
        about: "a library or driver crashed or hung the process that opened it",
        links: &[
            "https://github.com/vllm-project/vllm/issues/4077",
            "https://github.com/ROCm/rocm-systems/issues/13572",
        ],
        run: died,
    },
    UNUSABLE,
];

fn name(facts: &Facts) -> Vec<Observation> {
    let Some(value) = &facts.platform.variable else { return Vec::new() };
    if value.parse::<BackendName>().is_ok() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Error,
        format!("COLLECTIVES_BACKEND={value}"),
        "no backend has that name, and another one is never taken instead",
        "set it to nccl, rccl or mock, or unset it to let the hardware decide",
    )]
}

fn two_vendors(facts: &Facts) -> Vec<Observation> {
    let undecided = facts.decision.is_err() && facts.platform.variable.is_none();
    let reason = facts.decision.as_ref().err().filter(|_| undecided);
    reason
        .map(|reason| {
            Observation::new(
                Severity::Error,
                reason,
                "a program runs on the devices of one vendor, and nothing says which",
                "set COLLECTIVES_BACKEND=nccl or COLLECTIVES_BACKEND=rccl",
            )
        })
        .into_iter()
        .collect()
}

fn rccl(facts: &Facts) -> Vec<Observation> {
    let Ok(decision) = &facts.decision else { return Vec::new() };
    if decision.backend != BackendName::Rccl {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("RCCL is selected: {}", decision.reason),
        "its backend was tested without AMD hardware, and most checks of this list are about NCCL and \
         NVIDIA's driver",
        "please report what does not work; COLLECTIVES_BACKEND=mock runs on the CPU",
    )]
}

fn rccl_known_issue(facts: &Facts) -> Vec<Observation> {
    let library = facts.selected.library.as_ref().filter(|library| library.backend == "RCCL");
    let Some(library) = library else { return Vec::new() };
    let code = c_int::try_from(library.version.code()).unwrap_or(0);
    let ras_is_off = facts.settings.number("NCCL_RAS_ENABLE") == Some(0);
    quirks::known_bad(Flavour::Rccl, code)
        .filter(|issue| !issue.guarded)
        .filter(|issue| !(ras_is_off && issue.remedy.contains("NCCL_RAS_ENABLE=0")))
        .map(|issue| {
            Observation::new(
                Severity::Warning,
                format!("RCCL {}: {}: {}", library.version, issue.condition, issue.effect),
                "users of this release have reported it; a program that does not do this is safe",
                issue.remedy,
            )
            .with_link(issue.link)
        })
        .collect()
}

fn mock(facts: &Facts) -> Vec<Observation> {
    let Ok(decision) = &facts.decision else { return Vec::new() };
    if !decision.fallback {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("the mock is selected: {}", decision.reason),
        "results are right, but computed on the CPU: for tests, not for production",
        "if this machine should have a GPU, see the other findings; if the mock is wanted, set \
         COLLECTIVES_BACKEND=mock, which also ends the warning at start-up",
    )]
}

fn died(facts: &Facts) -> Vec<Observation> {
    let selected = facts.deaths.iter().any(|(what, _)| *what == SELECTED);
    let deaths = facts.deaths.iter().filter(|(what, _)| {
        // One death is told once: that of NCCL is that of the backend where NCCL is selected.
        *what == SELECTED || !selected || !facts.needs_nccl()
    });
    deaths
        .map(|(what, how)| {
            let severity =
                if *what == SELECTED { Severity::Error } else { facts.of_nccl(Severity::Warning) };
            Observation::new(
                severity,
                format!("the process that opened {what} ended without an answer: {how}"),
                "every program that opens it ends the same way; the usual causes are a broken or \
                 foreign file, a plugin, and a driver that hangs",
                "install the library again, take plugins out of the loader's path, and see whether \
                 nvidia-smi answers; COLLECTIVES_NCCL_PATH chooses another copy",
            )
        })
        .collect()
}

/// What [`Facts::deaths`] calls the selected backend.
const SELECTED: &str = "the selected backend";

/// The words for a problem that no check knows.
pub(super) fn unusable(problem: &str) -> Observation {
    Observation::new(
        Severity::Error,
        problem,
        "the selected backend does not work, for a reason that no other check explains",
        "act on the message; COLLECTIVES_BACKEND=mock runs on the CPU in the meantime",
    )
}

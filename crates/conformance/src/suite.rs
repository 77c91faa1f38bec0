//! From cases to trials: what is skipped, what is known to fail, and which world runs it.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use collectives_core::{Backend, Capabilities, Device, F8Format, Version};
use libtest_mimic::{Completion, Failed, Trial};

use crate::{
    Harness, KnownFault,
    cases::{Case, cases},
    check::End,
    processes::{Processes, serve_if_rank},
    threads::Threads,
    world::World,
};

/// One trial per world size and case.
///
/// In a process that a [world of processes](Harness::processes) of this harness has started as a rank,
/// it serves that world instead, and ends the process. So `main` calls it, for every harness, before
/// it does anything that only one process may do.
pub fn trials<H: Harness>(harness: H) -> Vec<Trial> {
    serve_if_rank(&harness);
    let suite = Arc::new(Suite::new(harness));
    let mut trials = Vec::new();
    for size in suite.harness.worlds() {
        // Dropped, and with it the worlds, when the last trial of this size has run.
        let worlds = Arc::new(Worlds { size, idle: Mutex::default() });
        trials.extend(cases().into_iter().map(|case| suite.trial(&worlds, case)));
    }
    trials
}

/// What a case cannot do without.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// A field of [`Capabilities`].
    Capability(&'static str),
    /// Reductions of fp8, by the library and by the device.
    Fp8Reduction,
    /// A device for each rank.
    Devices,
    /// Refusal of buffers and streams of another device.
    OwnershipChecks,
    /// A world of at least this size.
    Ranks(usize),
    /// A library of this release or a later one, for what no capability tells.
    Release(u32, u32, u32),
}

struct Suite<H: Harness> {
    harness: H,
    name: String,
    version: Version,
    capabilities: Capabilities,
    /// Of the first device; none where it is no CUDA device.
    compute_capability: Option<(u32, u32)>,
    faults: Vec<KnownFault>,
    seed: u64,
    /// Held by the one world that runs, where only one may.
    turn: Mutex<()>,
}

/// The worlds of one size that no trial is using.
struct Worlds {
    size: usize,
    idle: Mutex<Vec<World>>,
}

impl<H: Harness> Suite<H> {
    fn new(harness: H) -> Self {
        let backend = harness.backend();
        let version = backend.info().version;
        let applies = |fault: &KnownFault| {
            fault.since.is_none_or(|since| since <= version)
                && fault.fixed.is_none_or(|fixed| version < fixed)
        };
        Self {
            name: harness.name(),
            version,
            capabilities: *backend.capabilities(),
            compute_capability: harness
                .devices(1)
                .first()
                .and_then(|&ordinal| backend.device(ordinal).ok())
                .and_then(|device| device.info().compute_capability),
            faults: harness.known_faults().into_iter().filter(applies).collect(),
            seed: seed(),
            turn: Mutex::new(()),
            harness,
        }
    }

    fn trial(self: &Arc<Self>, worlds: &Arc<Worlds>, case: Case<H::Backend>) -> Trial {
        let size = worlds.size;
        let ranks = if size == 1 { "rank" } else { "ranks" };
        let world = format!("{}/{size} {ranks}", self.name);
        if let Some(lack) = case.needs.iter().find_map(|need| self.lacks(*need, size)) {
            let name = format!("[needs {lack}] {}", case.name);
            let skipped = move || Err(Failed::from(format!("cannot run: needs {lack}")));
            return Trial::test(name, skipped).with_kind(world).with_ignored_flag(true);
        }
        let (suite, worlds, kind) = (Arc::clone(self), Arc::clone(worlds), world.clone());
        let name = case.name;
        Trial::ignorable_test(name, move || suite.run(&worlds, &world, &case)).with_kind(kind)
    }

    fn lacks(&self, need: Need, size: usize) -> Option<String> {
        match need {
            Need::Capability(field) => {
                let entries = self.capabilities.entries();
                let entry = entries.iter().find(|(name, _)| *name == field);
                let (_, support) = entry.expect("cases name fields of `Capabilities`");
                (!support.is_available()).then(|| field.into())
            }
            Need::Fp8Reduction => {
                let has = self.capabilities.reduce_f8.is_available()
                    && self.compute_capability.is_none_or(|capability| capability >= (9, 0));
                // The oracle knows OCP's numbers only.
                let other = self.capabilities.f8_format == F8Format::Fnuz;
                match has {
                    true => other.then(|| "fp8 in OCP's format".into()),
                    false => Some("reduce_f8 and compute capability 9.0".into()),
                }
            }
            Need::Devices => {
                let devices = BTreeSet::from_iter(self.harness.devices(size)).len();
                (devices < size).then(|| format!("{size} devices"))
            }
            Need::OwnershipChecks => {
                (!self.harness.checks_ownership()).then(|| "ownership checks".into())
            }
            Need::Ranks(least) => (size < least).then(|| format!("{least} ranks")),
            Need::Release(major, minor, patch) => {
                let least = Version::new(major, minor, patch);
                (self.version < least).then(|| format!("release {least}"))
            }
        }
    }

    fn run(
        &self,
        worlds: &Worlds,
        world: &str,
        case: &Case<H::Backend>,
    ) -> Result<Completion, Failed> {
        let outcome = self.run_in_world(worlds, world, case.name);
        let shows =
            |fault: &&KnownFault| fault.case == case.name && fault.ranks.contains(&worlds.size);
        let fault = self.faults.iter().find(shows);
        Ok(match judge(outcome, fault, self.harness.may_lack(), self.seed)? {
            End::Complete => Completion::Completed,
            End::Skipped(reason) => Completion::ignored_with(reason),
        })
    }

    fn run_in_world(&self, worlds: &Worlds, name: &str, case: &str) -> Result<End, String> {
        let _turn = self.harness.serial().then(|| lock(&self.turn));
        let idle = lock(&worlds.idle).pop();
        let mut world = match idle {
            Some(world) => world,
            None => self.open(name, worlds.size)?,
        };
        let end = world.run(case, self.seed)?;
        lock(&worlds.idle).push(world);
        Ok(end)
    }

    fn open(&self, name: &str, size: usize) -> Result<World, String> {
        let (harness, deadline) = (&self.harness, self.harness.deadline());
        if harness.processes() {
            let ranks = Processes::start(harness, size)?;
            return World::open(name.into(), ranks, size, deadline);
        }
        let threads = Threads::start(name, &harness.backend(), &harness.devices(size))?;
        World::open(name.into(), threads, size, deadline)
    }
}

/// A case passes where it should, fails as it is known to, and is skipped only where systems differ.
fn judge(
    outcome: Result<End, String>,
    fault: Option<&KnownFault>,
    may_lack: bool,
    seed: u64,
) -> Result<End, Failed> {
    match (outcome, fault) {
        (Ok(End::Skipped(reason)), _) if may_lack => Ok(End::Skipped(reason)),
        (Ok(End::Skipped(reason)), _) => {
            Err(Failed::from(format!("skipped on a system that has to have everything: {reason}")))
        }
        (Ok(End::Complete), None) => Ok(End::Complete),
        (Ok(End::Complete), Some(fault)) => Err(Failed::from(format!(
            "expected to fail ({}), but passed: take it off the known faults",
            fault.link
        ))),
        (Err(text), Some(fault)) if text.contains(fault.message) => Ok(End::Complete),
        (Err(text), _) => {
            Err(Failed::from(format!("{text}\n  rerun with COLLECTIVES_TEST_SEED={seed}")))
        }
    }
}

/// `COLLECTIVES_TEST_SEED`, or one that differs from run to run.
fn seed() -> u64 {
    let given = std::env::var("COLLECTIVES_TEST_SEED").ok();
    given.map_or_else(
        || RandomState::new().hash_one(0) >> 32,
        |text| text.trim().parse().expect("COLLECTIVES_TEST_SEED is a number"),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_fault_must_fail_as_described() {
        let fault = KnownFault {
            case: "all_reduce::sum_matches_oracle",
            ranks: 1..=8,
            since: None,
            fixed: None,
            message: "element 3",
            link: "https://example.org/1",
        };
        let failed = |text: &str| Err(text.to_owned());
        assert!(judge(Ok(End::Complete), None, false, 1).is_ok());
        assert!(judge(failed("element 3 is 7"), Some(&fault), false, 1).is_ok());
        for (outcome, fault, says) in [
            (Ok(End::Complete), Some(&fault), "take it off"),
            (failed("another element"), Some(&fault), "another element"),
            (failed("element 3"), None, "COLLECTIVES_TEST_SEED=1"),
        ] {
            let message = judge(outcome, fault, false, 1).unwrap_err();
            let message = message.message().unwrap_or_default().to_owned();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn a_skip_is_counted_where_systems_differ_and_fails_elsewhere() {
        let skipped = || Ok::<_, String>(End::Skipped("no windows".into()));
        assert_eq!(judge(skipped(), None, true, 1).unwrap(), skipped().unwrap());
        let failed = judge(skipped(), None, false, 1).unwrap_err();
        let message = failed.message().unwrap_or_default();
        assert!(message.ends_with("has to have everything: no windows"), "{message}");
    }
}

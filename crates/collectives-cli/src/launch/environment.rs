//! What a rank finds in its environment: torchrun's variables, and ours.

use std::{
    env,
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    io,
    net::TcpListener,
    process::Command,
};

use collectives::mock::MockConfig;

use super::args::Args;

/// What all ranks of a job have in common, from its first start to its last.
pub(super) struct Common<'a> {
    args: &'a Args,
    /// Tells this job from others, also where they follow each other at one address.
    id: String,
}

impl<'a> Common<'a> {
    pub(super) fn new(args: &'a Args) -> Self {
        // Its keys are random numbers of the system, whichever that is.
        let random = || RandomState::new().hash_one(());
        Self { args, id: format!("{:016x}{:016x}", random(), random()) }
    }

    /// Where the ranks meet, as they are started this time. A port that is free now: nobody holds it
    /// until rank 0 does.
    pub(super) fn port(&self) -> io::Result<u16> {
        match self.args.master_port {
            Some(port) => Ok(port),
            None => Ok(TcpListener::bind((ADDRESS, 0))?.local_addr()?.port()),
        }
    }

    /// Gives a rank its variables.
    ///
    /// All of torchrun's are set, since what the caller has of them says what the caller is.
    pub(super) fn equip(&self, command: &mut Command, rank: u32, port: u16, restart: u32) {
        let Args { ranks, max_restarts, .. } = *self.args;
        for name in ["RANK", "LOCAL_RANK", "ROLE_RANK"] {
            command.env(name, rank.to_string());
        }
        for name in ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"] {
            command.env(name, ranks.to_string());
        }
        command
            .env("GROUP_RANK", "0")
            .env("GROUP_WORLD_SIZE", "1")
            .env("ROLE_NAME", "default")
            .env("MASTER_ADDR", ADDRESS)
            .env("MASTER_PORT", port.to_string())
            .env("TORCHELASTIC_RESTART_COUNT", restart.to_string())
            .env("TORCHELASTIC_MAX_RESTARTS", max_restarts.to_string())
            .env("TORCHELASTIC_RUN_ID", &self.id)
            // Rank 0 is to serve the store at that address: torchrun would, this does not.
            .env("TORCHELASTIC_USE_AGENT_STORE", "False")
            // Where a rank of the caller's job writes why it failed.
            .env_remove("TORCHELASTIC_ERROR_FILE");
        let mut unless_set = |name: &str, value: &dyn AsRef<OsStr>| {
            if env::var_os(name).is_none() {
                command.env(name, value);
            }
        };
        unless_set("TORCH_NCCL_ASYNC_ERROR_HANDLING", &"1");
        if ranks > 1 {
            // Else each of them would take all cores.
            unless_set("OMP_NUM_THREADS", &"1");
        }
        // Ranks of other backends don't read these.
        unless_set("COLLECTIVES_MOCK_RANKS", &"processes");
        if ranks as usize > MockConfig::new().devices {
            unless_set("COLLECTIVES_MOCK_DEVICES", &ranks.to_string());
        }
        if let Some(backend) = self.args.backend.name() {
            command.env("COLLECTIVES_BACKEND", backend.to_string());
        }
    }
}

const ADDRESS: &str = "127.0.0.1";

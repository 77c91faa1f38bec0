//! The devices of the machine, and what they say of themselves.

use std::{
    env,
    ffi::c_int,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

use collectives_backend_mock::{Mock, MockDevice};
use collectives_core::{Backend, Device as _, RawEvent};

use super::{Code, Reply, lock, stream::Stream};
use crate::runtime;

/// The machine of the process, with what its runtimes add to it.
pub(crate) struct Machine {
    pub(crate) mock: &'static Mock,
    seats: Vec<Seat>,
}

/// One device.
pub(crate) struct Seat {
    pub(crate) device: MockDevice,
    /// Its legacy default stream.
    pub(crate) legacy: std::sync::Arc<Stream>,
    /// Whether anything was ever enqueued there.
    pub(crate) legacy_is_used: AtomicBool,
    /// Recordings made on the legacy stream for blocking ones to wait for.
    pub(crate) legacy_records: AtomicU64,
    pub(crate) order: Mutex<Order>,
    /// Peers that it may access.
    pub(crate) peers: Mutex<Vec<usize>>,
}

/// What it takes to order blocking streams and the legacy one.
#[derive(Default)]
pub(crate) struct Order {
    /// An event that only this is used for.
    pub(crate) event: Option<RawEvent>,
    pub(crate) blocking: Vec<std::sync::Arc<Stream>>,
}

/// The machine, made on first use.
///
/// # Errors
/// [`Code::UNKNOWN`] where the environment asks for what cannot be, with one line that says so.
pub(crate) fn machine() -> Reply<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    let make = || match runtime::mock().and_then(Machine::new) {
        Ok(machine) => Some(machine),
        Err(error) => {
            runtime::say_once("machine", &error.to_string());
            None
        }
    };
    MACHINE.get_or_init(make).as_ref().ok_or(Code::UNKNOWN)
}

/// The device `ordinal` of the machine.
pub(crate) fn seat(ordinal: usize) -> Reply<&'static Seat> {
    machine()?.seats.get(ordinal).ok_or(Code::INVALID_DEVICE)
}

impl Machine {
    fn new(mock: &'static Mock) -> collectives_core::Result<Self> {
        let seat = |ordinal| {
            Ok(Seat {
                device: mock.device(ordinal)?,
                legacy: std::sync::Arc::new(Stream::legacy(ordinal)),
                legacy_is_used: AtomicBool::new(false),
                legacy_records: AtomicU64::new(0),
                order: Mutex::default(),
                peers: Mutex::default(),
            })
        };
        let seats = (0..mock.device_count()?).map(seat).collect::<collectives_core::Result<_>>()?;
        Ok(Self { mock, seats })
    }
}

impl Seat {
    /// Opens, or closes, the memory of a peer to this device. The engine lets every device reach
    /// every other; what is kept is only what programs are told.
    pub(crate) fn set_peer_access(&self, peer: usize, open: bool) -> Reply {
        let mut peers = lock(&self.peers);
        let known = peers.iter().position(|&known| known == peer);
        match (known, open) {
            (None, true) => peers.push(peer),
            (Some(index), false) => drop(peers.remove(index)),
            (Some(_), true) => return Err(Code::PEER_ACCESS_ALREADY_ENABLED),
            (None, false) => return Err(Code::PEER_ACCESS_NOT_ENABLED),
        }
        Ok(())
    }

    /// The name: `COLLECTIVES_MOCK_DEVICE_NAME`, or what the mock calls it.
    pub(crate) fn name(&self) -> String {
        let chosen = env::var("COLLECTIVES_MOCK_DEVICE_NAME").ok();
        chosen.filter(|name| !name.is_empty()).unwrap_or_else(|| self.device.info().name.clone())
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.device.info().ordinal
    }

    /// Domain, bus and device on the PCI bus.
    pub(crate) fn pci(&self) -> (u16, u8, u8) {
        let ordinal = self.ordinal();
        // Some 240 devices to a domain, from bus 16 on: less than 4096 need 18 domains.
        ((ordinal / BUSES) as u16, (FIRST_BUS + ordinal % BUSES) as u8, 0)
    }

    /// Its address, as the runtimes write it.
    pub(crate) fn pci_text(&self) -> String {
        let (domain, bus, device) = self.pci();
        format!("{domain:04X}:{bus:02X}:{device:02X}.0")
    }

    /// 16 bytes that no other device of the machine has.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = *b"collectives \0\0\0\0";
        uuid[12..].copy_from_slice(&(self.ordinal() as u32).to_be_bytes());
        uuid
    }

    pub(crate) fn total_memory(&self) -> usize {
        self.device.info().total_memory
    }
}

const BUSES: usize = 240;
const FIRST_BUS: usize = 16;

/// Whose numbering of devices counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Face {
    Cuda,
    Hip,
}

impl Face {
    /// The machine's devices that are visible, in the order of their numbers here.
    pub(crate) fn visible(self) -> Reply<&'static [usize]> {
        static VISIBLE: [OnceLock<Vec<usize>>; 2] = [const { OnceLock::new() }; 2];
        let all = machine()?.seats.len();
        let visible = VISIBLE[self as usize].get_or_init(|| {
            let var = |name| env::var(name).ok();
            match self {
                Self::Cuda => choose(all, var("CUDA_VISIBLE_DEVICES").as_deref()),
                Self::Hip => {
                    // ROCr hides devices first; HIP numbers what is left.
                    let left = choose(all, var("ROCR_VISIBLE_DEVICES").as_deref());
                    let list = var("HIP_VISIBLE_DEVICES").or_else(|| var("CUDA_VISIBLE_DEVICES"));
                    let chosen = choose(left.len(), list.as_deref());
                    chosen.into_iter().map(|index| left[index]).collect()
                }
            }
        });
        Ok(visible)
    }

    /// The seat of a device by its number here.
    pub(crate) fn seat(self, ordinal: c_int) -> Reply<&'static Seat> {
        let visible = self.visible()?;
        if visible.is_empty() {
            return Err(Code::NO_DEVICE);
        }
        let index = usize::try_from(ordinal).map_err(|_| Code::INVALID_DEVICE)?;
        seat(*visible.get(index).ok_or(Code::INVALID_DEVICE)?)
    }

    /// The number here of the machine's device `ordinal`.
    pub(crate) fn number(self, ordinal: usize) -> Reply<c_int> {
        let index = self.visible()?.iter().position(|&visible| visible == ordinal);
        index.map(|index| index as c_int).ok_or(Code::INVALID_DEVICE)
    }

    /// How many are visible.
    pub(crate) fn count(self) -> Reply<c_int> {
        match self.visible()?.len() {
            0 => Err(Code::NO_DEVICE),
            count => Ok(count as c_int),
        }
    }
}

/// What a list of numbers (or of unique names, `GPU-…`) leaves of `all` devices: the first entry
/// that names none ends it, and so does one that came before.
fn choose(all: usize, list: Option<&str>) -> Vec<usize> {
    let Some(list) = list else { return (0..all).collect() };
    let mut chosen = Vec::new();
    for entry in list.split(',').map(str::trim) {
        let index = match entry.strip_prefix("GPU-") {
            Some(prefix) => (0..all).find(|&index| uuid_text(index).starts_with(prefix)),
            None => entry.parse().ok().filter(|&index| index < all),
        };
        match index {
            Some(index) if !chosen.contains(&index) => chosen.push(index),
            _ => break,
        }
    }
    chosen
}

/// A device's unique name as `CUDA_VISIBLE_DEVICES` has it, behind the `GPU-`.
fn uuid_text(ordinal: usize) -> String {
    let Ok(seat) = seat(ordinal) else { return String::new() };
    let mut text = String::new();
    for (index, byte) in seat.uuid().iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

/// A `CUdevice_attribute`. Those of a GPU of compute capability 9.0; 0 for what it says nothing of
/// (no kernel runs here), so that programs take the plain path: no virtual memory management, no
/// multicast, no file handles.
pub(crate) fn attribute(seat: &Seat, attribute: c_int) -> Reply<c_int> {
    let (domain, bus, device) = seat.pci();
    Ok(match attribute {
        // Threads per block, by block dimension and by grid dimension.
        1..=4 => [1024, 1024, 1024, 64][attribute as usize - 1],
        5 => i32::MAX,
        6 | 7 => 65535,
        // Shared memory, constant memory, warp, pitch, registers.
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        11 => i32::MAX,
        12 => 64 << 10,
        // Clock in kHz, texture alignment, overlap, multiprocessors.
        13 => 1_980_000,
        14 => 512,
        15 => 1,
        16 => 132,
        // Map host memory, concurrent kernels.
        19 | 31 => 1,
        33 => bus.into(),
        34 => device.into(),
        // Memory clock in kHz, bus width, L2.
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        39 => 2048,
        // Copy engines, unified addresses.
        40 => 3,
        41 => 1,
        50 => domain.into(),
        // Compute capability.
        75 => 9,
        76 => 0,
        // Stream priorities, managed memory, host registration, pageable host memory.
        78 => 1,
        81 => 228 << 10,
        82 => 64 << 10,
        83 => 1,
        89 => 1,
        91 => 1,
        97 => 227 << 10,
        99 => 1,
        106 => 32,
        // Memory pools.
        115 => 1,
        _ if (1..LAST_ATTRIBUTE).contains(&attribute) => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}

/// One past the last attribute of CUDA 13.
const LAST_ATTRIBUTE: c_int = 150;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_devices_end_where_the_drivers_end_them() {
        assert_eq!(choose(3, None), [0, 1, 2]);
        for (list, want) in [
            ("", &[][..]),
            ("-1", &[]),
            ("1", &[1]),
            ("2, 0", &[2, 0]),
            ("1,7,0", &[1]),
            ("0,0,1", &[0]),
            ("1,none", &[1]),
        ] {
            assert_eq!(choose(3, Some(list)), want, "'{list}'");
        }
    }

    #[test]
    fn devices_are_told_apart() {
        let seats = [seat(0).unwrap(), seat(1).unwrap()];
        assert_eq!(seats[0].pci_text(), "0000:10:00.0");
        assert_ne!(seats[0].uuid(), seats[1].uuid());
        assert_eq!(attribute(seats[1], 33), Ok(17));
        assert_eq!(attribute(seats[1], 0), Err(Code::INVALID_VALUE));
    }
}

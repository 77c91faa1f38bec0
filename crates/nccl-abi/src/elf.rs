//! A look at a file before the dynamic loader maps it.
//!
//! The loader maps what the program headers say and then touches it: if the file ends earlier, as
//! after a broken download or a full disk, the process dies of SIGBUS in the middle of `dlopen`,
//! with no error to report. So the headers are compared with the file's size first. Only headers
//! are read; the libraries are hundreds of megabytes.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use object::elf::{self, FileHeader64};
use object::endian::Endianness;
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};

use crate::error::Refusal;

/// Whether the dynamic loader can be given this file.
///
/// # Errors
///
/// What is wrong with it, short of what only the loader can find (missing dependencies).
pub(crate) fn check(path: &Path) -> Result<(), Refusal> {
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Refusal::Directory);
    }
    // Asked before opening: to open a pipe is to wait for its writer.
    if !metadata.is_file() {
        return Err(Refusal::NotAFile);
    }
    let file = File::open(path).map_err(unreadable)?;
    check_headers(&ReadCache::new(file), metadata.len())
}

/// Compares what the headers promise with the file's size and this machine.
fn check_headers<'data>(data: impl ReadRef<'data>, size: u64) -> Result<(), Refusal> {
    if size == 0 {
        return Err(Refusal::NotALibrary(": the file is empty"));
    }
    let start = data.read_bytes_at(0, size.min(IDENT)).unwrap_or_default();
    if !start.starts_with(&elf::ELFMAG) {
        let script = start.starts_with(b"/* GNU ld");
        return Err(Refusal::NotALibrary(if script {
            " but a linker script; give the file that it names"
        } else {
            ""
        }));
    }
    if start.get(4) == Some(&elf::ELFCLASS32.0) {
        return Err(wrong_machine("a 32-bit machine"));
    }
    let truncated = |wanted| Refusal::Truncated { size, wanted };
    let header_size = size_of::<FileHeader64<Endianness>>() as u64;
    if size < header_size {
        return Err(truncated(header_size));
    }
    let malformed = |_| Refusal::NotALibrary(": its header is malformed");
    let header = FileHeader64::<Endianness>::parse(data).map_err(malformed)?;
    let endian = header.endian().map_err(malformed)?;
    let machine = header.e_machine(endian);
    if machine != MACHINE || endian != Endianness::default() {
        return Err(wrong_machine(&machine_name(machine)));
    }
    if header.e_type(endian) != elf::ET_DYN {
        return Err(Refusal::NotALibrary(" but another kind of ELF file"));
    }

    let table = |offset: u64, count: u16, entry: u16| {
        offset.saturating_add(u64::from(count) * u64::from(entry))
    };
    let tables = u64::max(
        table(header.e_phoff(endian), header.e_phnum(endian), header.e_phentsize(endian)),
        table(header.e_shoff(endian), header.e_shnum(endian), header.e_shentsize(endian)),
    );
    if tables > size {
        return Err(truncated(tables));
    }
    let segments = header.program_headers(endian, data).map_err(malformed)?;
    let end = |segment: &elf::ProgramHeader64<Endianness>| {
        segment.p_offset(endian).saturating_add(segment.p_filesz(endian))
    };
    let wanted = segments.iter().map(end).max().unwrap_or(0);
    if wanted > size { Err(truncated(wanted)) } else { Ok(()) }
}

fn unreadable(error: io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::NotFound => Refusal::Missing,
        _ => Refusal::Unreadable(error),
    }
}

fn wrong_machine(found: &str) -> Refusal {
    Refusal::WrongMachine { found: found.to_owned(), wanted: std::env::consts::ARCH }
}

/// A machine as Rust names it, or by its number.
fn machine_name(machine: elf::Machine) -> String {
    match machine {
        elf::EM_X86_64 => "x86_64".to_owned(),
        elf::EM_AARCH64 => "aarch64".to_owned(),
        elf::EM_PPC64 => "powerpc64".to_owned(),
        elf::EM_RISCV => "riscv".to_owned(),
        other => format!("machine {} of the ELF registry", other.0),
    }
}

/// This process's machine.
#[cfg(target_arch = "x86_64")]
const MACHINE: elf::Machine = elf::EM_X86_64;
/// This process's machine.
#[cfg(target_arch = "aarch64")]
const MACHINE: elf::Machine = elf::EM_AARCH64;
/// No vendor builds libraries for this machine, so none fits.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINE: elf::Machine = elf::EM_NONE;

/// Bytes at the start of a file that tell what it is.
const IDENT: u64 = 16;
